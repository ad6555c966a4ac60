"""Topic names and topic filters: validity, matching, shared subscriptions [5: section 4.7, 4.8.2].

Both are kept as the UTF-8 bytes that came off the wire: comparing and hashing bytes is all that routing needs.
"""

from typing import NamedTuple

from broker.mqtt.wire import is_valid_utf8

__all__ = ["SharedFilter", "filter_error", "is_wildcard", "matches", "parse_shared", "topic_error"]

_SHARE = b"$share/"


def topic_error(topic: bytes) -> str | None:
    """Say what is wrong with a topic name, or return None where it is valid [5:MQTT-3.3.2-2, 5:MQTT-4.7.3-1]."""
    if not topic:
        return "the topic name is empty"
    if b"+" in topic or b"#" in topic:
        return "the topic name contains a wildcard"
    if not is_valid_utf8(topic):
        return "the topic name is not valid UTF-8"
    return None


def filter_error(topic_filter: bytes) -> str | None:
    """Say what is wrong with a topic filter (without `$share/`), or return None where it is valid [5:MQTT-4.7.1-1]."""
    if not topic_filter:
        return "the topic filter is empty"
    if not is_valid_utf8(topic_filter):
        return "the topic filter is not valid UTF-8"
    levels = topic_filter.split(b"/")
    last = len(levels) - 1
    for index, level in enumerate(levels):
        if b"#" in level and (level != b"#" or index != last):
            return "'#' must be the whole last level of a topic filter"
        if b"+" in level and level != b"+":
            return "'+' must be a whole level of a topic filter"
    return None


class SharedFilter(NamedTuple):
    """A shared subscription: the share name and the topic filter behind it [5: section 4.8.2]."""

    share_name: bytes
    topic_filter: bytes


def parse_shared(topic_filter: bytes) -> SharedFilter | None:
    """Return the parts of `$share/NAME/FILTER`, or None where *topic_filter* is not shared [5:MQTT-4.8.2-1].

    Raises ValueError, with words for the client, where the name or the filter is missing or the name has a wildcard.
    """
    if not topic_filter.startswith(_SHARE):
        return None
    name, slash, rest = topic_filter[len(_SHARE) :].partition(b"/")
    if not name:
        raise ValueError("the share name is empty")
    if b"+" in name or b"#" in name:
        raise ValueError("the share name contains a wildcard")
    if not slash or not rest:
        raise ValueError("a shared subscription has no topic filter behind its share name")
    return SharedFilter(name, rest)


def is_wildcard(topic_filter: bytes) -> bool:
    """Tell whether *topic_filter* can match more than one topic name."""
    return b"+" in topic_filter or b"#" in topic_filter


def matches(topic_filter: bytes, topic: bytes) -> bool:
    """Tell whether *topic* is matched; a leading wildcard matches no `$` topic [5:MQTT-4.7.2-1]."""
    if topic[:1] == b"$" and topic_filter[:1] in (b"+", b"#"):
        return False
    levels = topic.split(b"/")
    wanted = topic_filter.split(b"/")
    for index, level in enumerate(wanted):
        if level == b"#":
            return True
        if index >= len(levels) or level not in (b"+", levels[index]):
            return False
    return len(wanted) == len(levels)
