"""The contract class of each task."""

from collections.abc import Mapping

from tasks.chat import ChatContract
from tasks.contracts.contract import Contract
from tasks.generate import GenerateContract
from tasks.summarize import SummarizeContract
from tasks.translate import TranslateContract

CONTRACTS: Mapping[str, type[Contract]] = {
    contract.task: contract
    for contract in (SummarizeContract, TranslateContract, GenerateContract, ChatContract)
}
