#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# The action plugin of the same name does the work, on the control node.

DOCUMENTATION = r"""
module: table
short_description: Print rows as a table, and fail when one of them is not well
description:
  - Prints plain aligned lines (or one line of JSON) to the output of the run, without the quoting of a debug task.
options:
  columns:
    description: Keys of the rows to print, in this order.
    type: list
    elements: str
    required: true
  rows:
    description: The rows. One with a key C(ok) that is false is printed in red, and makes the task fail.
    type: list
    elements: dict
    required: true
  format:
    description: C(table) for people, C(json) for programs (one line, all keys).
    type: str
    choices: [table, json]
    default: table
  failure:
    description: What the rows that are not well are, after their number, for the message.
    type: str
    default: rows are not well
  join:
    description: >-
      Column whose values are put together where rows differ by it only, to make a table short. Rows that are not well
      stay alone.
    type: str
    default: ""
  heading:
    description: Whether the names of the columns are printed above them.
    type: bool
    default: true
author: The pst platform team
"""

EXAMPLES = r"""
- name: Print the services
  pst.platform.table:
    columns: [host, service, state]
    rows: [{host: lab-lb1, service: haproxy, state: active, ok: true}]
"""

RETURN = r"""
failed_rows:
  description: Number of rows that are not well.
  returned: always
  type: int
"""
