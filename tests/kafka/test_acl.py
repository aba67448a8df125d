"""The ACLs of docs/OPERATIONS.md are enough, none of them can be left out, and an error names what is missing."""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka_server import KafkaServer

OPERATIONS = pathlib.Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
