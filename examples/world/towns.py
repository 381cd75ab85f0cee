"""The towns of the estuary and their people. These facts never change."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Town:
    name: str
    keeper: str  # of its lighthouse
    miller: str
    grain: str  # ground by its mill
    goods: str  # its well-known product
    inn: str
    ferry: str
    market_day: str
    river: str


TOWNS = (
    Town("Saltmere", "Ada Finch", "Tobias Reed", "barley", "salt",
         "the Three Herrings", "the Patient Anna", "Monday", "Wend"),
    Town("Larkness", "Silas Crane", "Clara Moss", "oats", "smoked herring",
         "the Lark and Lantern", "the Grey Heron", "Tuesday", "Arrow"),
    Town("Eelgate", "Nell Harrow", "Jonas Pike", "rye", "eel pies",
         "the Silver Eel", "the Slow Dolphin", "Wednesday", "Tamsin"),
    Town("Mossquay", "Henry Vane", "Irma Teal", "wheat", "honey",
         "the Mossy Anchor", "the Green Turtle", "Thursday", "Ottery"),
    Town("Wrenport", "Rose Tarn", "Paul Sedge", "barley", "wool",
         "the King Wren", "the Little Wren", "Friday", "Arrow"),
    Town("Driftholm", "Otto Gale", "Martha Quill", "wheat", "boats",
         "the Drowned Bell", "the Old Petrel", "Saturday", "Wend"),
    Town("Kelpstow", "Edith Brine", "Hugo Alder", "oats", "oysters",
         "the Oyster Catcher", "the Sea Snail", "Sunday", "Kell"),
    Town("Ternby", "Walter Dune", "Agnes Rook", "rye", "candles",
         "the Last Candle", "the Lucky Tern", "Monday", "Kell"),
    Town("Brackwater", "Flora Stern", "Basil Wick", "barley", "rope",
         "the Long Rope", "the Brown Otter", "Tuesday", "Tamsin"),
    Town("Fogmouth", "Ivan Shoal", "Daisy Thorn", "wheat", "bells",
         "the Foggy Dew", "the Quiet Bell", "Wednesday", "Ottery"),
    Town("Gullcliff", "Maud Skerry", "Felix Barrow", "oats", "cheese",
         "the Greedy Gull", "the White Gull", "Thursday", "Skell"),
    Town("Sandlow", "Amos Drift", "Greta Hollow", "rye", "blue glass",
         "the Sandy Foot", "the Happy Crab", "Friday", "Skell"),
)  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
HOURS = ("at dawn", "at noon", "at dusk", "at midnight")
NUMBERS = (
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
)  # fmt: skip
