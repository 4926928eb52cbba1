#!/usr/bin/python
"""Issue the certificates of a site from a private authority, in one task."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pki_certificates
short_description: Issue the certificates of a site
version_added: "0.1.0"
description:
  - Runs on the control node. Makes a folder hold a private certificate authority and one file (private key and
    certificate) for every host and purpose, and issues again what is missing, damaged, near its end, for other names
    or from another authority.
  - Every file is replaced by one rename, so a run that is killed is resumed by the next one.
options:
  directory:
    description: The folder, made with mode 0700.
    type: path
    required: true
  certificates:
    description:
      - Table of purposes. Each value has C(groups), and may have C(names) and C(addresses) (further alternative names),
        C(shared) (one key pair for all hosts of the groups), and with it C(certificate) and C(private_key)
        (paths of the user's own pair).
    type: dict
    required: true
  groups:
    description: The inventory's groups with their hosts.
    type: dict
    required: true
  addresses:
    description: Every host of the site with the address that the other hosts use.
    type: dict
    required: true
  domain:
    description: Every host's full name is C(<host>.<domain>).
    type: str
    required: true
  ca_directory:
    description: The folder of the authorities, O(directory) by default. Shared by sites that trust each other.
    type: path
  ca_name:
    description: The authority that issues, made on first use.
    type: str
    default: ca-1
  ca_also_trusted:
    description: Further authorities that the hosts trust. Names (made on first use) or paths of PEM files.
    type: list
    elements: str
    default: []
  ca_certificate:
    description: The user's own issuing authority instead, with the certificates above it.
    type: path
  ca_private_key:
    description: Its private key.
    type: path
  ca_passphrase:
    description: The passphrase of that key.
    type: str
  ca_validity_days:
    description: How long a new authority is valid.
    type: int
    default: 3650
  validity_days:
    description: How long a new certificate is valid.
    type: int
    default: 90
  renew_before_days:
    description: A certificate that ends within so many days is issued again.
    type: int
    default: 30
  force:
    description: Patterns of C(<host>/<name>) that are issued again.
    type: list
    elements: str
    default: []
requirements: [cryptography]
attributes:
  check_mode: {support: full, description: Says what would be issued.}
  diff_mode: {support: full, description: Lists what is issued and why.}
author: [The pst platform team]
"""

EXAMPLES = r"""
- name: Issue the certificates of the site
  pst.platform.pki_certificates:
    directory: "{{ site_state_dir }}/pki"
    certificates:
      redis: {groups: [redis]}
      public: {groups: [load_balancers], names: [trading.example.org], shared: true}
    groups: "{{ groups }}"
    addresses: {redis1: 192.0.2.11, redis2: 192.0.2.12}
    domain: example.org
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
issued:
  description: What was issued, each with its reason.
  returned: always
  type: list
  elements: dict
certificates:
  description: Serial and end of every certificate, by C(<host>/<name>).
  returned: always
  type: dict
"""

import traceback
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from ansible_collections.pst.platform.plugins.module_utils import pki
except ImportError:
    pki = None
    IMPORT_ERROR = traceback.format_exc()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "certificates": {"type": "dict", "required": True},
            "groups": {"type": "dict", "required": True},
            "addresses": {"type": "dict", "required": True},
            "domain": {"type": "str", "required": True},
            "ca_directory": {"type": "path"},
            "ca_name": {"type": "str", "default": "ca-1"},
            "ca_also_trusted": {"type": "list", "elements": "str", "default": []},
            "ca_certificate": {"type": "path"},
            "ca_private_key": {"type": "path", "no_log": False},
            "ca_passphrase": {"type": "str", "no_log": True},
            "ca_validity_days": {"type": "int", "default": 3650},
            "validity_days": {"type": "int", "default": 90},
            "renew_before_days": {"type": "int", "default": 30},
            "force": {"type": "list", "elements": "str", "default": []},
        },
        required_together=[("ca_certificate", "ca_private_key")],
        supports_check_mode=True,
    )
    if pki is None:
        module.fail_json(msg=missing_required_lib("cryptography"), exception=IMPORT_ERROR)
    options = module.params
    own = (options["ca_certificate"], options["ca_private_key"])
    try:
        result = pki.ensure(
            pki.Store(Path(options["directory"]), write=not module.check_mode),
            pki.Authorities(
                directory=Path(options["ca_directory"] or options["directory"]),
                issuer=options["ca_name"],
                also_trusted=tuple(options["ca_also_trusted"]),
                validity=timedelta(days=options["ca_validity_days"]),
                supplied=(Path(own[0]), Path(own[1])) if all(own) else None,
                passphrase=options["ca_passphrase"],
            ),
            pki.site_requests(options["certificates"], options["groups"], options["addresses"], options["domain"]),
            pki.Policy(
                validity=timedelta(days=options["validity_days"]),
                renew_before=timedelta(days=options["renew_before_days"]),
                force=tuple(options["force"]),
            ),
            datetime.now(UTC),
        )
    except pki.PkiError as error:
        module.fail_json(msg="\n".join(error.problems))
    for warning in result.warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(result.changes),
        issued=[asdict(change) for change in result.changes],
        certificates=result.certificates,
        diff={"before": "", "after": "".join(f"issue {c.label}: {c.reason}\n" for c in result.changes)},
    )


if __name__ == "__main__":
    main()
