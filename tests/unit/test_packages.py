"""What is missing is asked of one listing, and everything is missing where there is none."""

from ansible_collections.pst.platform.plugins.module_utils.packages import missing_packages

LISTING = {"stdout": "installed haproxy\nconfig-files redis-server\ninstalled python3-pymongo\n"}


def test_only_what_is_installed_in_full_counts() -> None:
    assert missing_packages(["haproxy", "redis-server", "keepalived"], LISTING) == ["redis-server", "keepalived"]


def test_one_name_may_be_a_string() -> None:
    assert missing_packages("haproxy", LISTING) == []


def test_without_a_listing_nothing_is_known() -> None:
    assert missing_packages(["haproxy"], {}) == ["haproxy"]
