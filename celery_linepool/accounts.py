"""Users and groups of the system, as numbers."""

from __future__ import annotations

import grp
import os
import pwd
from typing import TYPE_CHECKING, List, Optional, Tuple

if TYPE_CHECKING:
    from .settings import PoolSettings


def account_of(
    settings: "PoolSettings",
) -> Tuple[Optional[int], Optional[int], Optional[List[int]]]:
    """User, group and further groups of a child, as numbers; None for ours.

    Another user has the groups of its own, never ours. Looked up here because
    subprocess would open pipes first and, before Python 3.12, leave them open.
    """
    user, group = settings.user, settings.group
    gid = grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    if user is None:
        return None, gid, None
    if isinstance(user, str):
        entry: Optional[pwd.struct_passwd] = pwd.getpwnam(user)
    else:
        entry = _entry_of(user)
    if entry is None:
        if int(user) < 0:
            raise ValueError(f"there is no user {user}")
        return int(user), gid, []
    gid = entry.pw_gid if gid is None else gid
    return entry.pw_uid, gid, os.getgrouplist(entry.pw_name, entry.pw_gid)


def _entry_of(uid: int) -> Optional[pwd.struct_passwd]:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None  # a number without a name
