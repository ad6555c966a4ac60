"""ternmq: an MQTT broker in pure Python.

`python -m broker --config broker.yaml` runs it; `async with Broker(config) as broker` runs it inside a program.
"""

from broker.app import Broker, StartError
from broker.link import Link, LinkError, Message

__version__ = "0.1.0"
__all__ = ["Broker", "Link", "LinkError", "Message", "StartError", "__version__"]
