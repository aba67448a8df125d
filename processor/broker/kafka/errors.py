"""What librdkafka's errors mean in the protocol, and what a reader of the message can do about each."""

from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException

from tokenometer.processor.broker import BrokerError, Dead, Fenced, Lost, OutOfRange, Refused, TopicMissing

_FENCED = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.FENCED_INSTANCE_ID,
}
_LOST = {
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
}
_OUT_OF_RANGE = {KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET, KafkaError._LOG_TRUNCATION}
_TOPIC_MISSING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError.INCONSISTENT_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
}
_REFUSED = {
    KafkaError.SASL_AUTHENTICATION_FAILED: "check the sasl.* settings",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "check sasl.mechanisms",
    KafkaError._AUTHENTICATION: "check the sasl.* and ssl.* settings",
    KafkaError._SSL: "check the ssl.* settings",
    KafkaError.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic",
    KafkaError.RECORD_LIST_TOO_LARGE: "raise segment.bytes of the topic",
    KafkaError.OFFSET_METADATA_TOO_LARGE: "raise offset.metadata.max.bytes of the brokers",
    KafkaError.INVALID_TRANSACTION_TIMEOUT: "lower transaction.timeout.ms, or raise transaction.max.timeout.ms",
    KafkaError.INVALID_SESSION_TIMEOUT: "bring session.timeout.ms within the brokers' limits",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "give all members the same partition.assignment.strategy",
    KafkaError.GROUP_MAX_SIZE_REACHED: "raise group.max.size of the brokers",
    KafkaError.INVALID_GROUP_ID: "choose another group",
    KafkaError.TOPIC_EXCEPTION: "choose another name",
    KafkaError.INVALID_CONFIG: "correct the topic's settings",
    KafkaError.INVALID_PARTITIONS: "ask for one partition at least",
    KafkaError.INVALID_REPLICATION_FACTOR: "the cluster has too few brokers for its default.replication.factor",
    KafkaError.POLICY_VIOLATION: "the cluster's policy does not allow it",
    KafkaError.INVALID_RECORD: "a compacted topic needs keys, and a timestamp must be near the broker's clock",
    KafkaError.INVALID_TIMESTAMP: "a timestamp must be near the broker's clock",
    KafkaError.UNSUPPORTED_VERSION: "the brokers are too old; 2.5 is the oldest that can do this",
    KafkaError.UNSUPPORTED_ASSIGNOR: "set group.remote.assignor to one that the brokers have: uniform or range",
    KafkaError._INVALID_ARG: "librdkafka refuses the argument",
}
# Fatal to a client, and not to the next one.
_DEAD = {
    KafkaError.UNRELEASED_INSTANCE_ID: "a member of this name is gone, and its session has not ended"
    " (group.consumer.session.timeout.ms), or another process has its name",
}
_RESOURCES = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "transactional id",
}
# They pass while a broker takes a group over.
COORDINATOR_MOVES = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}
# They pass while another broker takes a partition over.
LEADER_MOVES = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
}
# librdkafka mends these itself, sooner or later. Exceeding max.poll.interval.ms is followed by a rebalance.
PASSING = (
    COORDINATOR_MOVES
    | LEADER_MOVES
    | {
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError._PARTITION_EOF,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.BROKER_NOT_AVAILABLE,
    }
)


_FATAL_CAUSES = {KafkaError(code).str(): code for code in _FENCED | _LOST | {*_REFUSED, *_RESOURCES, *_DEAD}}


@dataclass(frozen=True)
class Access:
    """What a client has to be allowed, for the error that says that it is not. principal: as far as its settings tell.
    The other arguments are the operation and its resource, such as `READ on the topic logs`."""

    principal: str
    topic: str | None = None
    group: str | None = None
    cluster: str | None = None
    transactional_id: str | None = None

    def wanted(self, resource: str) -> str:
        needed = getattr(self, resource.replace(" ", "_")) or f"its operations on the {resource}"
        return f"allow {self.principal} {needed} (kafka-acls.sh, docs/OPERATIONS.md)"


_UNKNOWN = Access("this principal")


def is_fatal(error: KafkaError) -> bool:
    """Has librdkafka given the client up? An error that comes as a message is not marked as fatal, but has the code."""
    return error.fatal() or error.code() == KafkaError._FATAL


def _code(error: KafkaError) -> int:
    """A fatal error tells its cause only in its text."""
    if error.code() != KafkaError._FATAL:
        return error.code()
    return next((code for text, code in _FATAL_CAUSES.items() if text in error.str()), KafkaError._FATAL)


def error_of(doing: str, error: KafkaError, access: Access = _UNKNOWN) -> BrokerError:
    """What a KafkaError means to the protocol."""
    code = _code(error)
    text = f"{doing}: {error.str()} ({error.name()})"
    if code in _FENCED:
        return Fenced(f"{text}: another process has taken over; stop this one")
    if code in _LOST and not is_fatal(error):
        return Lost(text)
    if code in _OUT_OF_RANGE:
        return OutOfRange(f"{text}: retention has passed the offset, or the topic was made anew")
    if code in _TOPIC_MISSING:
        return TopicMissing(f"{text}: was the topic deleted?")
    if code in _RESOURCES:
        return Refused(f"{text}: {access.wanted(_RESOURCES[code])}")
    if code in _REFUSED:
        return Refused(f"{text}: {_REFUSED[code]}")
    if code in _DEAD:
        return Dead(f"{text}: {_DEAD[code]}")
    return Dead(text) if is_fatal(error) else BrokerError(text)


def error_from(doing: str, error: KafkaException, access: Access = _UNKNOWN) -> BrokerError:
    return error_of(doing, error.args[0], access)
