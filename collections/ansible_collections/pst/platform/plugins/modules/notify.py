#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ansible module: tell of an event by e-mail and webhook; never fails because nobody could be told."""

from __future__ import annotations

DOCUMENTATION = r"""
module: notify
short_description: Tell of an event by e-mail and webhook
description:
  - Tries every way on its own, and does not fail where one does not work, as an operation must not stop because nobody
    could be told. What was wrong is a warning, and in RV(problems).
  - Certificates are verified. A webhook gets JSON with the header C(X-Pst-Signature), C(sha256=) and the HMAC of
    C(<X-Pst-Timestamp>.<body>); redirects are not followed.
  - In check mode nothing is sent.
version_added: 0.3.0
options:
  event:
    description: Name of the event.
    type: str
    required: true
  site:
    description: Name of the site.
    type: str
    required: true
  text:
    description: What is told. Its first line is the subject.
    type: str
    required: true
  fields:
    description: What the text was made of, for programs. No secrets.
    type: dict
    default: {}
  mail:
    description: The mail server and the people. Without it no e-mail is sent.
    type: dict
    suboptions:
      host: {description: Name of the server., type: str, required: true}
      port: {description: Its port., type: int, default: 587}
      security:
        description: How the connection is secured. V(none) for a relay on this machine, without a login.
        type: str
        choices: [starttls, tls, none]
        default: starttls
      username: {description: Login., type: str}
      password: {description: Its password., type: str}
      sender: {description: Address that it comes from., type: str, required: true}
      recipients: {description: Addresses that it goes to., type: list, elements: str, required: true}
      ca_file: {description: Authority of the server's certificate. Without it those of the system., type: path}
  webhooks:
    description: Programs that are told.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: What it is called here., type: str, required: true}
      url: {description: Address (https)., type: str, required: true}
      secret: {description: Key of the signature., type: str, required: true}
      ca_file: {description: Authority of the server's certificate. Without it those of the system., type: path}
  timeout:
    description: Seconds to wait for each server.
    type: float
    default: 10
  attempts:
    description: How often each way is tried.
    type: int
    default: 2
author: The pst platform team
"""

EXAMPLES = r"""
- name: Tell of it
  pst.platform.notify:
    event: test
    site: lab
    text: "A test\n\nNothing has happened."
    mail: {host: mail.example.net, sender: pst@example.net, recipients: [ops@example.net]}
"""

RETURN = r"""
sent:
  description: Ways that took it.
  returned: always
  type: list
  elements: str
problems:
  description: What was wrong with the other ways.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.pst.platform.plugins.module_utils import notify


def main() -> None:
    """Run the module."""
    mail = {
        "host": {"type": "str", "required": True},
        "port": {"type": "int", "default": 587},
        "security": {"type": "str", "choices": ["starttls", "tls", "none"], "default": "starttls"},
        "username": {"type": "str"},
        "password": {"type": "str", "no_log": True},
        "sender": {"type": "str", "required": True},
        "recipients": {"type": "list", "elements": "str", "required": True},
        "ca_file": {"type": "path"},
    }
    webhook = {
        "name": {"type": "str", "required": True},
        "url": {"type": "str", "required": True, "no_log": True},
        "secret": {"type": "str", "required": True, "no_log": True},
        "ca_file": {"type": "path"},
    }
    module = AnsibleModule(
        argument_spec={
            "event": {"type": "str", "required": True},
            "site": {"type": "str", "required": True},
            "text": {"type": "str", "required": True},
            "fields": {"type": "dict", "default": {}},
            "mail": {"type": "dict", "options": mail},
            "webhooks": {"type": "list", "elements": "dict", "default": [], "options": webhook},
            "timeout": {"type": "float", "default": 10},
            "attempts": {"type": "int", "default": 2},
        },
        supports_check_mode=True,
    )
    p = module.params
    if module.check_mode:
        module.exit_json(changed=False, sent=[], problems=[])
    event = notify.Event(p["event"], p["site"], p["text"], p["fields"], notify.now())
    sent, problems = notify.deliver(event, p["mail"] or {}, p["webhooks"], timeout=p["timeout"], attempts=p["attempts"])
    for problem in problems:
        module.warn(f"{p['event']} was not told by {problem}")
    module.exit_json(changed=bool(sent), sent=sent, problems=problems)


if __name__ == "__main__":
    main()
