#!/usr/bin/python
# Copyright: the pst platform team
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""pst.platform.prometheus_targets; the logic is in module_utils/prometheus.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prometheus_targets
short_description: Check that Prometheus sees every expected target up
description: Fails with a line for every target that is not up, or not known to Prometheus at all. Changes nothing.
version_added: 0.1.0
author: The pst platform team
options:
  url:
    description: Where Prometheus is.
    type: str
    required: true
  ca:
    description: Certificates that its certificate is checked against.
    type: path
    required: true
  certificate:
    description: PEM file with the key and the certificate to log in with.
    type: path
    required: true
  targets:
    description: The expected targets, as in the file that Prometheus reads them from.
    type: list
    elements: dict
    required: true
    suboptions:
      targets: {description: Addresses and ports., type: list, elements: str, required: true}
      labels:
        description: Labels; C(job) is needed, C(instance) where it is not the address that is asked.
        type: dict
        required: true
  timeout:
    description: Bound of one request, in seconds.
    type: float
    default: 5
  wait:
    description: How long to ask again, in seconds. V(0) asks once.
    type: float
    default: 0
"""

EXAMPLES = r"""
- name: Check that every target is up
  pst.platform.prometheus_targets:
    url: https://10.78.0.61:9090
    ca: /etc/pst/pki/ca.crt
    certificate: /etc/pst/pki/monitoring/monitoring.pem
    targets:
      - {targets: ["10.78.0.61:9100"], labels: {job: node}}
    wait: 60
"""

RETURN = r"""
up: {description: How many targets are up., returned: success, type: int, sample: 14}
"""

import ssl
import urllib.request

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils.prometheus import (
    PrometheusError,
    Target,
    wait_up,
)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "ca": {"type": "path", "required": True},
            "certificate": {"type": "path", "required": True},
            "targets": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "targets": {"type": "list", "elements": "str", "required": True},
                    "labels": {"type": "dict", "required": True},
                },
            },
            "timeout": {"type": "float", "default": 5},
            "wait": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    options = module.params

    def fetch() -> bytes:
        context = ssl.create_default_context(cafile=options["ca"])
        context.load_cert_chain(options["certificate"])
        url = f"{options['url']}/api/v1/targets?state=active"
        with urllib.request.urlopen(url, timeout=options["timeout"], context=context) as answer:  # noqa: S310
            return bytes(answer.read())

    expected = [
        Target(group["labels"]["job"], group["labels"].get("instance", address))
        for group in options["targets"]
        for address in group["targets"]
    ]
    try:
        module.exit_json(changed=False, up=wait_up(expected, fetch, options["wait"]))
    except PrometheusError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()
