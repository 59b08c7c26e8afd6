"""The price of a worker's second: known for one whole card of RunPod's table, and only there."""

import pytest
from fakes.gpu import RTX_4090

from worker.config import gpus, prices
from worker.config.settings import Settings

ON_4090 = {
    "RUNPOD_POD_ID": "pod1",
    "RUNPOD_ENDPOINT_ID": "ep0",
    "ENGINE_DEVICE": "cuda",
    "ENGINE_GPU": RTX_4090.split(",")[0],
}


def price(**environ):
    return prices.usd_per_second(Settings.from_environ(ON_4090 | environ))


@pytest.mark.parametrize("pool", prices.CARDS)
def test_each_card_has_the_price_of_its_pool(pool):
    for name in prices.CARDS[pool]:
        assert price(ENGINE_GPU=name, RUNPOD_GPU_COUNT="1") == prices.DOLLARS_PER_SECOND.get(pool)


@pytest.mark.parametrize(
    "environ",
    [
        *({"RUNPOD_GPU_COUNT": count} for count in ("2", "0", "x")),
        *({"ENGINE_DEVICE": device} for device in ("cpu", "")),
        *({name: ""} for name in ("RUNPOD_POD_ID", "RUNPOD_ENDPOINT_ID", "ENGINE_GPU")),
        *(
            {"ENGINE_GPU": name}
            for name in (
                *("NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU"),
                *("NVIDIA GeForce RTX 4090 (MIG slice)", "nvidia geforce rtx 4090", "4090"),
                "NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb",
                *("NVIDIA A100-SXM4-80GB (memory unknown)", "NVIDIA A100-SXM4-40GB"),
                *("NVIDIA H200 NVL", "NVIDIA GeForce RTX 5090", "x" * 9999),
            )
        ),
    ],
)
def test_another_machine_or_card_has_no_known_price(environ):
    assert price(**environ) is None


def test_a_card_of_two_pools_has_no_known_price(monkeypatch):
    monkeypatch.setitem(prices.CARDS, "ADA_48_PRO", prices.CARDS["ADA_24"])
    assert price() is None


def test_the_pools_are_those_of_the_table_of_gpus_and_each_card_is_in_one():
    assert prices.CARDS.keys() == gpus.POOLS.keys()
    assert prices.DOLLARS_PER_SECOND.keys() == gpus.POOLS.keys() - {"ADA_32_PRO"}
    names = [name for cards in prices.CARDS.values() for name in cards]
    assert len(names) == len(set(names))
    for pool, cards in prices.CARDS.items():
        families = [word for kind in gpus.POOLS[pool] for word in kind.names.split(", ")]
        assert all(any(family in name for family in families) for name in cards), pool
