"""samegraph-client: send raw inputs to a model server and lose none of them.

    from samegraph_client import Client

    with Client("http://127.0.0.1:8000") as client:
        print(client.predict("imagenet", Path("cat.jpg")).value)

`AsyncClient` is the same with `await`. Both drive one sans-IO core (`core.py`), so they retry, wait and fail alike.
"""

from .core import Prediction
from .errors import (
    AnswerNotUnderstood,
    AttemptTimedOut,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    InputRejected,
    NotAuthorized,
    NotFound,
    RawInputInvalid,
    Refused,
    ServerDeadlinePassed,
    ServerError,
    ServerFault,
    TransportFailure,
)
from .faces import AsyncClient, Client
from .policy import RetryPolicy, wait_hint

__version__ = "0.1.0"

__all__ = [
    "Client",
    "AsyncClient",
    "Prediction",
    "RetryPolicy",
    "wait_hint",
    "ClientError",
    "RawInputInvalid",
    "TransportFailure",
    "ConnectionFailed",
    "AttemptTimedOut",
    "AnswerNotUnderstood",
    "DeadlineExceeded",
    "ServerError",
    "InputRejected",
    "NotAuthorized",
    "NotFound",
    "Refused",
    "ServerDeadlinePassed",
    "ServerFault",
]
