#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# The action plugin of the same name does the work, on the control node.

DOCUMENTATION = r"""
module: evidence
short_description: Send requests while an operation runs, and report what became of them
description:
  - Runs on the control node alone, whatever the host; the host is not contacted. Nothing is done in check mode.
  - C(begun) starts a probe in the background and waits for its first successes. C(event) notes what happens.
    C(ended) stops it, writes C(<operation>-<UTC time>.json) and the page C(.html) beside it, and fails when a bar is
    not met.
  - A site has one run at a time. One that was left without an end is ended by the next C(begun), and reported.
  - A play uses C(begun) and C(ended) through the role C(evidence). C(event) is for any task, and costs next to nothing.
options:
  state:
    description: What to do.
    type: str
    choices: [begun, event, ended]
    required: true
  enabled:
    description: Nothing is done where it is false. Default the variable C(evidence_enabled), or false.
    type: bool
  directory:
    description: Folder of the reports. Default the variable C(evidence_directory), or C(reports) beside the playbooks.
    type: path
  site:
    description: Name of the site. Default the variable C(site_name).
    type: str
  host:
    description: Host that an event is told of. Default the host of the task.
    type: str
  what:
    description: The event, in a few words. Required with O(state=event).
    type: str
  operation:
    description: Name of the operation, a part of the reports' file names. Required with O(state=begun).
    type: str
  url:
    description: What to GET. Its host name is the one in TLS and in the Host header. Required with O(state=begun).
    type: str
  post_url:
    description: Where to POST, and to ask for the run's posts afterwards; the same host. Empty - nothing is posted.
    type: str
    default: ""
  address:
    description: Connect here instead of the URL's host.
    type: str
    default: ""
  ca_file:
    description: Authority that the server's certificate must come from. Empty - the authorities of the control node.
    type: path
    default: ""
  token:
    description: Shown with every request as C(Authorization - Bearer). It goes through a file, never an argument.
    type: str
    default: ""
  rate:
    description: Requests a second (more than 0, 2000 at most).
    type: float
    default: 20
  post_share:
    description: Which share of the requests are POSTs, 0 to 1.
    type: float
    default: 0.2
  new_share:
    description: Which share of the requests have a connection of their own, 0 to 1.
    type: float
    default: 0.5
  max_seconds:
    description: The probe ends by itself after so many seconds (14400 at most), whatever became of the control process.
    type: int
    default: 3600
  probe:
    description: The program, C(pst_probe.py). Required with O(state=begun).
    type: path
  first:
    description: Successes to wait for before the operation begins.
    type: int
    default: 50
  first_seconds:
    description: How long to wait for them.
    type: float
    default: 30
  require:
    description:
      - What the report must have at most, of C(failed), C(duplicate_posts), C(lost_posts), C(longest_gap_ms),
        C(p50_ms), C(p99_ms), C(late_ms), C(duration_s).
      - Default C(failed), C(duplicate_posts) and C(lost_posts) 0, C(longest_gap_ms) 1000.
    type: dict
author: The pst platform team
"""

EXAMPLES = r"""
- name: Note it in the evidence, where there is a run under way
  pst.platform.evidence:
    state: event
    what: restarts HAProxy
"""

RETURN = r"""
evidence:
  description: The report in short, with C(operation), C(run), C(requests), C(outcome) and what O(require) may name.
  returned: with O(state=ended)
  type: dict
report:
  description: Path of the report.
  returned: with O(state=ended)
  type: str
noted:
  description: Whether a run was under way.
  returned: with O(state=event)
  type: bool
"""
