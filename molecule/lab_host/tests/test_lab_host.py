"""A lab host behaves as a machine that an installer has just left."""

import pytest
from testinfra.host import Host


def test_boot_is_complete(host: Host) -> None:
    assert host.check_output("systemctl is-system-running --wait") == "running"


def test_login_is_by_key_and_sudo_needs_no_password(host: Host) -> None:
    assert host.user().name == "deploy"
    with host.sudo():
        assert host.check_output("id -u") == "0"


def test_hosts_know_each_other_by_name(host: Host) -> None:
    for name in ("host12", "host13", "host13.lab-host.pst.test"):
        assert host.run("getent hosts %s", name).rc == 0, name


def test_packages_are_downloaded_but_not_installed(host: Host) -> None:
    assert not host.package("haproxy").is_installed
    assert host.run("ls /var/cache/apt/archives/haproxy_*.deb").rc == 0


def test_etc_hosts_can_be_replaced_by_a_rename(host: Host) -> None:
    with host.sudo():
        assert host.run("cp /etc/hosts /etc/hosts.new && mv /etc/hosts.new /etc/hosts").rc == 0


def test_power_loss_keeps_the_host(host: Host) -> None:
    if host.check_output("hostname") != "host12":
        pytest.skip("only host12 lost its power")
    with host.sudo():
        assert host.file("/root/kept").content_string == "kept\n"
        assert "kept.example" in host.file("/etc/hosts").content_string
