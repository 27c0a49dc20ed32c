"""The agents are tested against the SDK's fake kernel."""

from tests.sdk import conftest

fake = conftest.fake
