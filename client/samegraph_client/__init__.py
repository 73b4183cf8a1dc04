"""samegraph-client: send raw inputs to a model server and lose none of them.

    from samegraph_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("imagenet", Path("cat.jpg")).value)

`AsyncClient` is the same with `await`. Both drive one sans-IO core (`dispatch.py`), so they retry, wait and fail alike. Many items go
through `predict_many`, the frames of a video through `predict_frames`; docs/client.md of the repository has it all.
"""

from .awaiting import AsyncClient, AsyncResults
from .blocking import Client, Results
from .core import Prediction
from .dispatch import Event
from .errors import (
    AddressInvalid,
    AnswerNotUnderstood,
    AttemptTimedOut,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    ExtraMissing,
    FeedbackRejected,
    InputRejected,
    JournalBusy,
    JournalError,
    JournalFull,
    JournalMismatch,
    NotAuthorized,
    NotFound,
    RawInputInvalid,
    Refused,
    ServerDeadlinePassed,
    ServerError,
    ServerFault,
    TransportFailure,
    Unreachable,
    VideoUnreadable,
)
from .gate import Gate
from .journal import JournalFile
from .many import Outcome
from .policy import RetryBudget, RetryPolicy, wait_full_jitter, wait_hint
from .report import Report
from .video import StreamReport

__version__ = "0.1.0"

__all__ = [
    "Client",
    "AsyncClient",
    "Prediction",
    "Results",
    "AsyncResults",
    "Outcome",
    "Report",
    "StreamReport",
    "JournalFile",
    "Event",
    "Gate",
    "RetryPolicy",
    "RetryBudget",
    "wait_hint",
    "wait_full_jitter",
    "ClientError",
    "RawInputInvalid",
    "TransportFailure",
    "ConnectionFailed",
    "Unreachable",
    "AddressInvalid",
    "AttemptTimedOut",
    "AnswerNotUnderstood",
    "DeadlineExceeded",
    "ExtraMissing",
    "FeedbackRejected",
    "VideoUnreadable",
    "JournalError",
    "JournalBusy",
    "JournalMismatch",
    "JournalFull",
    "ServerError",
    "InputRejected",
    "NotAuthorized",
    "NotFound",
    "Refused",
    "ServerDeadlinePassed",
    "ServerFault",
]
