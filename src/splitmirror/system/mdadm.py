"""mdadm(8), for what the kernel alone does not do: taking a member back."""

from __future__ import annotations

from splitmirror.errors import Busy, MirrorError, ProgramFailed, SplitmirrorError
from splitmirror.system import programs

_TIMEOUT_S = 60.0  # it waits for udev and the kernel, not for a resync


def re_add(array: str, member: str) -> bool:
    """Give an array a member back that was taken out of it, so that only what the bitmap marks is
    copied. False: it cannot be, for it was out too long or is another device. Raises Busy while
    something else uses it, MirrorError."""
    try:
        programs.run(["mdadm", array, "--re-add", member], timeout_s=_TIMEOUT_S)
    except ProgramFailed as error:
        said = str(error.facts["stderr"])
        if "not possible" in said:
            return False
        raise _refused(array, member, said) from error
    return True


def add(array: str, member: str) -> None:
    """Give an array a member that is copied in full. Raises Busy, MirrorError."""
    try:
        programs.run(["mdadm", array, "--add", member], timeout_s=_TIMEOUT_S)
    except ProgramFailed as error:
        raise _refused(array, member, str(error.facts["stderr"])) from error


def _refused(array: str, member: str, said: str) -> SplitmirrorError:
    kind = Busy if "busy" in said.lower() else MirrorError
    return kind(
        f"{array} does not take {member} back: {said}",
        hint=f"Put right what it says, then: mdadm {array} --re-add {member}",
    )
