"""What a failure of the Hub means, and what to do about it.

The libraries raise some thirty classes for this, wrapped in each other and differing between
versions; here only their names, HTTP status and words along the chain of causes are looked at.
"""

from collections.abc import Iterator

from course_utils.errors import CourseError

_CUT = {  # the connection broke or was too slow: trying again may help
    "ReadTimeout",
    "ConnectTimeout",
    "PoolTimeout",
    "WriteTimeout",
    "TimeoutException",
    "TimeoutError",
    "RemoteProtocolError",
    "ReadError",
    "ClientPayloadError",
    "ServerDisconnectedError",
    "IncompleteRead",
    "ConnectionResetError",
    "ChunkedEncodingError",
}
_AWAY = {  # nobody answers
    "ConnectError",
    "ConnectionError",
    "OfflineModeIsEnabled",
    "ClientConnectorError",
    "NewConnectionError",
    "LocalEntryNotFoundError",
    "PermissionError",
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that it was raised from, outermost first."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [found.__cause__, found.__context__]


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error was raised for."""
    for found in chain(error):
        status = getattr(getattr(found, "response", None), "status_code", None)
        status = status or getattr(found, "status", None)
        if isinstance(status, int):
            return status
    return None


def _names(error: BaseException) -> set[str]:
    return {base.__name__ for found in chain(error) for base in type(found).__mro__}


def is_passing(error: BaseException) -> bool:
    """Whether the same request may work a moment later: cut, too slow, too many, server down."""
    status = status_of(error)
    if status is not None and (status == 429 or status >= 500):
        return True
    said = " ".join(str(found) for found in chain(error)).lower()
    return bool(_names(error) & _CUT) or "consistency check" in said


def is_away(error: BaseException) -> bool:
    """Whether the Hub could not be asked at all."""
    return status_of(error) is None and (bool(_names(error) & _AWAY) or is_passing(error))


def explain(error: Exception, id: str, revision: str | None) -> CourseError:
    """The failure to read `id` as a sentence with what to do."""
    name = f"the dataset {id}" + (f" (revision {revision})" if revision else "")
    page = f"https://huggingface.co/datasets/{id}"
    said = " ".join(str(found) for found in chain(error)).lower()
    status, names = status_of(error), _names(error)
    if "GatedRepoError" in names or "is a gated dataset" in said or status == 403:
        fix = (
            f"it is gated: accept its terms on {page}, then log in with `hf auth login` (in a "
            "notebook: huggingface_hub.login()) and load it again"
        )
    elif status == 401 and "RepositoryNotFoundError" not in names:
        fix = "your access token is not valid (any more): log in with `hf auth login`, or log out"
    elif "RevisionNotFoundError" in names or ("revision" in said and "doesn't exist" in said):
        fix = f"there is no such revision; {page}/commits/main lists them"
    elif names & {"RepositoryNotFoundError", "DatasetNotFoundError"} or status in (401, 404):
        fix = (
            f"the Hub has no such dataset, or it is private; look at {page}, and for a private one "
            "log in with `hf auth login`"
        )
    elif "scripts are no longer supported" in said:
        fix = (
            "it is a program, not files, and no program of the Hub is run here; try "
            'revision="refs/convert/parquet", the Hub\'s own conversion, if it has one'
        )
    elif status == 429:
        fix = (
            "the Hub asks to slow down (429, too many requests): wait some minutes; logged in with "
            "`hf auth login` you may ask more often"
        )
    elif status is not None and status >= 500:
        fix = f"the Hub is in trouble ({status}): try again later; https://status.huggingface.co"
    elif is_away(error):
        fix = (
            "it is not in the local cache, and the Hub cannot be reached; connect to the network "
            "(and unset HF_HUB_OFFLINE), load it once with the same arguments where there is one, "
            'use Lab.open(tier="tiny"), which needs neither, or bring your own file with '
            "course_utils.data.load_file"
        )
    else:
        words = str(error).strip().splitlines()
        fix = f"{type(error).__name__}: {words[0] if words else 'no message'}; see {page}"
    return CourseError(f"cannot load {name}: {fix}")
