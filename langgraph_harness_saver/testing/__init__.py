"""The contract suite for stores: subclass `StoreContract` in your tests and give it a `store` fixture.

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self): ...                 # yields an opened, empty store, and closes it

        def raw_rows(self, store): ...       # counts what is in the database, with the driver alone
        def reopen(self, store): ...         # another store on the same data

`FamilyContract` (branches and tags), `EventContract`, `KeepingContract` (retention) and `LookContract` (many
checkpoints at once) go on from there, with the same fixture.

It needs pytest and pytest-asyncio in auto mode. Every test runs through both doors: awaited on an event
loop, and again (`…_sync`) as a sync caller of the saver would run it.
`pytest.register_assert_rewrite("langgraph_harness_saver.testing")` makes failures tell more.
"""

from langgraph_harness_saver.testing.changing import _ChangingTests
from langgraph_harness_saver.testing.events import EventContract
from langgraph_harness_saver.testing.families import FamilyContract
from langgraph_harness_saver.testing.keeping import KeepingContract
from langgraph_harness_saver.testing.looks import LookContract
from langgraph_harness_saver.testing.storing import _StoringTests
from langgraph_harness_saver.testing.together import _TogetherTests
from langgraph_harness_saver.testing.tools import _through_both_doors

__all__ = ["EventContract", "FamilyContract", "KeepingContract", "LookContract", "StoreContract"]


class StoreContract(_StoringTests, _ChangingTests, _TogetherTests):
    """What every store does for threads that share nothing, as tests; see the module's docstring."""


for _tests in StoreContract.__bases__:
    _through_both_doors(StoreContract, _tests)
