"""The policies that are compared, freshly made for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from turnout_simulator.policies.aibrix import PrefixCache
from turnout_simulator.policies.chwbl import BoundedLoadHashing
from turnout_simulator.policies.dynamo import KvCost
from turnout_simulator.policies.holding import HoldingTurnout, HoldingTurnoutPairs
from turnout_simulator.policies.llmd import Scorers
from turnout_simulator.policies.own import Turnout
from turnout_simulator.policies.pairs import TurnoutPairs, TwoPools
from turnout_simulator.policies.plain import LeastRequests, RoundRobin
from turnout_simulator.policies.sglang import CacheAware

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnout.routing.work import WorkModel
    from turnout_simulator.policies.peers import PeerNetwork
    from turnout_simulator.policies.port import EnginePolicy, PairPolicy
    from turnout_simulator.replay import Setting

    Maker = Callable[[int, Setting, WorkModel], EnginePolicy]

PEERS: Final[tuple[Maker, ...]] = (
    lambda n, _s, _w: RoundRobin(n),
    lambda n, _s, _w: LeastRequests(n),
    lambda n, _s, _w: BoundedLoadHashing(n),
    lambda n, _s, _w: CacheAware(n),
    lambda n, s, _w: PrefixCache(n, s.kv_blocks),
    lambda n, s, _w: Scorers(n, s.kv_blocks, s.block_tokens, 0.05),
    lambda n, s, _w: Scorers(n, s.kv_blocks, s.block_tokens, 0.2),
    lambda n, s, _w: KvCost(n, s.kv_blocks, s.block_tokens),
)
"""Makers of the peers' policies for a pool: (engines of the pool, setting, work model)."""

OWN: Final = len(PEERS)
"""The number of Turnout's policy; the peers' are 0 to OWN - 1."""

HOLDING: Final = OWN + 1
"""The number of Turnout's policy in a router that holds requests back."""

NUMBERS: Final = range(HOLDING + 1)

PAIRED: Final = (1, 3, 5, 7, OWN, HOLDING)
"""Those that are compared on prefill/decode pools, too: least requests, SGLang, llm-d, Dynamo, Turnout."""


def aggregated(
    number: int,
    setting: Setting,
    work: WorkModel,
    scrape_seconds: float | None = None,
    network: PeerNetwork | None = None,
) -> EnginePolicy:
    """Return the *number*-th policy for a pool of aggregated engines."""
    if number == HOLDING:
        return HoldingTurnout(setting.engines, setting.kv_blocks, setting.block_tokens, work)
    if number == OWN:
        return Turnout(
            setting.engines, setting.kv_blocks, setting.block_tokens, work, scrape_seconds, network
        )
    return PEERS[number](setting.engines, setting, work)


def paired(number: int, setting: Setting, work: WorkModel, network: PeerNetwork | None = None) -> PairPolicy:
    """Return the *number*-th policy for a prefill and a decode pool."""
    if number == HOLDING:
        return HoldingTurnoutPairs(
            setting.prefill, setting.engines, setting.kv_blocks, setting.block_tokens, work
        )
    if number == OWN:
        return TurnoutPairs(
            setting.prefill, setting.engines, setting.kv_blocks, setting.block_tokens, work, network
        )
    make = PEERS[number]
    decode_engines = setting.engines - setting.prefill
    return TwoPools(
        make(setting.prefill, setting, work), make(decode_engines, setting, work), setting.prefill
    )
