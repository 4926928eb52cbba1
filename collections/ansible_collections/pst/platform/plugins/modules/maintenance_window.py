#!/usr/bin/python
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
# The action plugin of the same name does the work, on the control node.

DOCUMENTATION = r"""
module: maintenance_window
short_description: Refuse a playbook that changes something outside its maintenance windows
description:
  - Fails unless a maintenance window is open, the exchanges named are closed, none of the processes given runs and no
    order is open. The message names what is in the way, the next time that is allowed, and how to override.
  - A time is what a clock on the wall of its zone shows. An hour that the zone skips is not there, one that it repeats
    is there twice.
  - In check mode it never fails. It warns, and returns the same.
options:
  windows:
    description: The maintenance windows. With none, no time is allowed.
    type: list
    elements: dict
    required: true
    suboptions:
      days:
        description: Days of the week on which the window begins, of Mon to Sun.
        type: list
        elements: str
        required: true
      start:
        description: Beginning, HH:MM.
        type: str
        required: true
      end:
        description: End, HH:MM. Before the start, it is on the following day; equal, the window is a whole day.
        type: str
        required: true
      zone:
        description: Time zone of days, start and end, a name of the IANA database. Default O(zone).
        type: str
  calendars:
    description:
      - Codes of the Python library exchange_calendars (on the control node), such as CMES, XNYS and IEPA. While one of
        these exchanges is open, no start. Holidays and early closes count.
      - Of CMES the daily halt from 16:00 to 17:00 in Chicago counts as closed, also where the library does not know it.
    type: list
    elements: str
    default: []
  zone:
    description: Time zone of the site, a name of the IANA database; the processes and what is returned are in it.
    type: str
    required: true
  processes:
    description:
      - Rows of the table of processes (C(name), C(start), C(stop), C(days)) during whose times no start is allowed.
        Other keys are not looked at.
    type: list
    elements: dict
    default: []
  open_orders:
    description: Number of orders that are open. One is enough for a refusal.
    type: int
    default: 0
  minimum_minutes:
    description: Minutes, 0 or more, that have to be left for a start to be allowed.
    type: int
    default: 0
  override:
    description:
      - Why to go on where a start is not allowed, in 10 characters or more; a shorter one is refused. Empty is none.
    type: str
    default: ""
  now:
    description: The time to judge, in ISO format with its offset from UTC, for tests. Default the clock's.
    type: str
author: The pst platform team
"""

EXAMPLES = r"""
- name: Refuse to start outside the maintenance windows
  pst.platform.maintenance_window:
    zone: "{{ site_time_zone }}"
    windows: "{{ site_maintenance_windows }}"
    calendars: "{{ site_maintenance_calendars | default([]) }}"
    processes: "{{ trading_processes | selectattr('name', 'in', site_maintenance_respect_processes | default([])) }}"
    open_orders: "{{ open_orders }}"
    minimum_minutes: 30
    override: "{{ site_maintenance_override | default('') }}"
  run_once: true
  register: maintenance
"""

RETURN = r"""
allowed:
  description: Whether a start is allowed, whatever the override.
  returned: always
  type: bool
overridden:
  description: Whether it is not, and the override lets it pass. To be recorded, with RV(override) and RV(reasons).
  returned: always
  type: bool
override:
  description: The reason that was given, also where it was not needed.
  returned: always
  type: str
reasons:
  description: What is in the way.
  returned: always
  type: list
  elements: str
  sample: [no maintenance window is open, CMES is open until Wed 2026-01-07 17:00 EST]
next_allowed:
  description:
    - The first time that windows, calendars and processes allow, within 60 days, in the site's time zone; now where
      they do. None where there is none, or where only open orders are in the way.
  returned: always
  type: str
  sample: "2026-01-07T17:05-05:00"
until:
  description: The end of the time that is allowed, now or next. None where it is not within 60 days.
  returned: always
  type: str
  sample: "2026-01-07T17:55-05:00"
msg:
  description: All of that in words.
  returned: always
  type: str
"""
