"""Tests of processor/broker/kafka/fetch that need no Kafka."""
