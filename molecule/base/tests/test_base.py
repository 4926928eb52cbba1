"""Every host has one zone, the same names, a held clock and a closed sshd."""

from testinfra.host import Host


def test_local_time_is_the_sites(host: Host) -> None:
    offset = host.check_output("date +%%z")
    assert offset == host.check_output("TZ=America/New_York date +%%z")
    assert host.check_output("python3 -c 'import time; print(time.tzname[0])'") == "EST"


def test_names_resolve_to_the_sites_addresses(host: Host) -> None:
    for name, address in {
        "base12": "10.78.11.11",
        "base13.base.pst.test": "10.78.11.12",
        "trading.base.pst.test": "10.78.11.10",
        "mirror.example": "192.0.2.9",
    }.items():
        assert host.check_output("getent ahostsv4 %s | awk 'NR==1{print $1}'", name) == address


def test_clock_asks_the_sites_servers_only(host: Host) -> None:
    with host.sudo():
        sources = host.check_output("chronyc -n -c sources").splitlines()
    assert len(sources) == 1
    assert sources[0].split(",")[2] == "10.78.11.11"


def test_sshd_takes_keys_only(host: Host) -> None:
    with host.sudo():
        settings = host.check_output("sshd -T").lower().splitlines()
    assert "passwordauthentication no" in settings
    assert "permitrootlogin no" in settings
    options = (
        "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        " -o PreferredAuthentications=password"
    )
    assert "Permission denied (publickey)" in host.check_output(f"ssh {options} root@localhost true 2>&1 || true")


def test_admin_may_become_root_and_has_exactly_the_given_key(host: Host) -> None:
    with host.sudo("alice"):
        assert host.check_output("sudo -n id -u") == "0"
    with host.sudo():
        assert len(host.file("/home/alice/.ssh/authorized_keys").content_string.splitlines()) == 1


def test_journal_survives_a_reboot(host: Host) -> None:
    with host.sudo():
        assert host.run("journalctl --header | grep -q /var/log/journal/").rc == 0
        if host.check_output("hostname") == "base12":
            assert int(host.check_output("journalctl --list-boots | wc -l")) >= 2
