"""The values of the demo's task: what may stand in a request, and what the command then has.

Each phrasing belongs either to training or to the held-out rows, never to both, and so does every open value (names,
places, items, sentences, clock times, numbers): a model that scores on the held-out rows has learned the task, not the
sentences. Closed sets (days, units, rooms, colours, languages, ways to travel) are shared, because a command has to use
exactly those words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

Spoken: TypeAlias = str
Value: TypeAlias = str | int


@dataclass(frozen=True)
class Pool:
    """What may fill a slot: (as it is said, as the command has it), for training and for the held-out rows."""

    train: tuple[tuple[Spoken, Value], ...]
    held_out: tuple[tuple[Spoken, Value], ...]
    closed: bool = False


@dataclass(frozen=True)
class Intent:
    """One command: its name, its keys in the order of the JSON object, and its phrasings.

    A key is written when the phrasing mentions it, `fixed` keys always are; `{items}` may come as `{items}` and `{items2}`.
    """

    name: str
    keys: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]


def _open(train: str, held_out: str) -> Pool:
    """An open set of words that are said as they are written; given as comma-separated texts."""

    def pairs(text: str) -> tuple[tuple[Spoken, Value], ...]:
        return tuple((item.strip(), item.strip()) for item in " ".join(text.split()).split(","))

    return Pool(pairs(train), pairs(held_out))


def _closed(**said: str) -> Pool:
    """A closed set, the same for both parts: value="as it is said, or so"."""
    pairs = tuple((spoken.strip(), value) for value, words in said.items() for spoken in words.split(","))
    return Pool(pairs, pairs, closed=True)


def _numbers(low: int, high: int, step: int = 1) -> Pool:
    """Whole numbers said in digits; every fourth is kept for the held-out rows."""
    numbers = [(str(number), number) for number in range(low, high + 1, step)]
    return Pool(
        tuple(pair for index, pair in enumerate(numbers) if index % 4 != 2),
        tuple(pair for index, pair in enumerate(numbers) if index % 4 == 2),
    )


def _clock() -> Pool:
    """Times of day: "6:20", "18:45", "9 pm"; the command has HH:MM. Full hours are shared, a fourth of the others kept.

    Full hours stand four times among training's: 9 pm has to be known by heart, 6:20 only copied.
    """
    full = tuple((f"{(hour - 1) % 12 + 1} {'am' if hour < 12 else 'pm'}", f"{hour:02d}:00") for hour in range(6, 23))
    others = tuple(
        (f"{hour}:{minute:02d}", f"{hour:02d}:{minute:02d}") for hour in range(6, 23) for minute in range(5, 60, 5)
    )
    return Pool(
        4 * full + tuple(pair for index, pair in enumerate(others) if index % 4 != 1),
        full + tuple(pair for index, pair in enumerate(others) if index % 4 == 1),
    )


POOLS: Final[dict[str, Pool]] = {
    "time": _clock(),
    "day": _closed(
        today="today",
        tomorrow="tomorrow",
        monday="on Monday",
        tuesday="on Tuesday",
        wednesday="on Wednesday",
        thursday="on Thursday",
        friday="on Friday",
        saturday="on Saturday",
        sunday="on Sunday",
    ),
    "duration": _numbers(2, 59),
    "unit": _closed(seconds="seconds", minutes="minutes", hours="hours"),
    "amount": _numbers(2, 97),
    "from": _closed(
        miles="miles", pounds="pounds", ounces="ounces", feet="feet", gallons="gallons", inches="inches", cups="cups"
    ),
    "to": _closed(
        kilometers="kilometers",
        kilograms="kilograms",
        grams="grams",
        meters="meters",
        liters="liters",
        centimeters="centimeters",
        milliliters="milliliters",
    ),
    "degrees": _numbers(14, 29),
    "level": _numbers(4, 96),
    "brightness": _numbers(5, 95),
    "room": _closed(
        kitchen="the kitchen",
        bedroom="the bedroom",
        bathroom="the bathroom",
        hallway="the hallway",
        office="the office",
        garage="the garage",
    ),
    "state": _closed(on="on", off="off"),
    "colour": _closed(red="red", blue="blue", green="green", orange="orange", purple="purple", white="white"),
    "mode": _closed(walking="on foot", driving="by car", cycling="by bike", transit="by bus"),
    "language": _closed(
        french="French", spanish="Spanish", german="German", italian="Italian", japanese="Japanese", portuguese="Portuguese"
    ),
    "person": _open(
        """Maria, Tom, Aisha, Jonas, Priya, Ben, Chloe, Marcus, Yuki, Elena, Omar, Sofia, Liam, Grace, Pedro, Hannah,
        Ivan, Ruth, Noah, Emma, Lucas, Nina, David, Olga, my sister, my boss, grandpa, the dentist, the landlord,
        mom, Hugo, Carla, Anton, Freya, Rashid, Mei, Gavin, Ursula, Diego, Ingrid, Kofi, Wendy, Stefan, Zoe, my
        aunt, my neighbor, dad, the office""",
        "Amara, Felix, Leila, Oscar, Tessa, Victor, Greta, Samir, my brother, my teacher, grandma, the plumber",
    ),
    "task": _open(
        """water the plants, pay the rent, feed the cat, take out the trash, book a dentist appointment, renew my
        passport, charge the camera, return the library books, buy a birthday card, clean the fridge, check the
        oven, sign the contract, pack the suitcase, order new glasses, back up my laptop, walk the dog, change the
        bed sheets, cancel the gym membership, send the invoice, defrost the chicken, pick up the parcel, wash the
        car, turn in the timesheet, fix the bike""",
        """mow the lawn, refill the prescription, iron my shirts, file the tax return, empty the dishwasher, replace
        the smoke alarm battery, stretch my back, vacuum the stairs, print the boarding pass, descale the kettle""",
    ),
    "items": _open(
        """eggs, milk, bread, rice, butter, coffee, bananas, olive oil, toothpaste, tomatoes, onions, cheese, paper
        towels, honey, green tea, apples, pasta, yogurt, batteries, dog food, carrots, oat milk, shampoo, potatoes,
        flour, chicken, salt, lemons""",
        """garlic, peanut butter, mushrooms, dish soap, cereal, spinach, light bulbs, cinnamon, grapes, tofu, napkins,
        chickpeas""",
    ),
    "text": _open(
        """I am running late, the meeting is moved, dinner is ready, see you at the station, I left the keys at home,
        thanks for the help, the package has arrived, I will be there soon, good luck with the exam, the train is
        delayed, can we talk later, I found your jacket, the report is done, happy birthday, we need more paint,
        call me when you land, I am at the door, the window is open, lunch is on me, the tickets are booked""",
        """my phone is almost dead, the kids are asleep, I missed the bus, the soup was great, bring a warm coat, the
        movie starts early, I got the job, the printer is broken, we are out of gas, congratulations on the new
        house""",
    ),
    "thought": _open(
        """the wifi password is on the router, paint the fence in spring, the spare key is under the mat, ask about the
        discount, the blue cable is the good one, my locker is number forty, try the new bakery, read the chapter on
        rivers, the car is on level three, the recipe needs more salt, rent a bike next time, the meter reads nine
        hundred, lisa prefers tea, the shop closes early, use the side entrance, the baby likes peas, keep the
        receipt, the pump makes a noise""",
        """the filter goes in backwards, plant the tulips deeper, the good seats are in row seven, the code starts with
        a star, skip the first exit, this wine is too sweet, the left drawer sticks, bring cash to the market, seat
        the twins together""",
    ),
    "place": _open(
        """Berlin, Lisbon, Chicago, Oslo, Madrid, Tokyo, Boston, Naples, Dublin, Nairobi, Seattle, Prague, Mumbai,
        Denver, Athens, Toronto, Sydney, Cairo, Vienna, Lima, Austin, Geneva, Seoul, Glasgow, Krakow, Ottawa,
        Bristol, Valencia, Jakarta, Phoenix, Bergen, Havana, Munich, Nagoya, Salzburg, Tampa, Quito, Leeds,
        Marseille, Perth, Bangkok, Cologne, Memphis, Split, Accra, Antwerp""",
        "Hamburg, Porto, Dallas, Helsinki, Kyoto, Bogota, Zurich, Quebec, Tunis, Cardiff",
    ),
    "destination": _open(
        """the airport, the central station, the city museum, the nearest pharmacy, the old harbor, the football
        stadium, the public library, the town hall, the botanical garden, the farmers market, the main hospital, the
        north beach, the post office, the swimming pool, the language school, the hardware store, the castle, the
        opera house, the bus station, the city park, the concert hall, the nearest bakery, the fish market, the
        tennis courts, the zoo, the community center, the car wash, the south gate""",
        """the train depot, the art gallery, the closest gas station, the ice rink, the ferry terminal, the science
        center, the vet clinic, the flower shop, the lookout tower""",
    ),
    "artist": _open(
        """Miles Davis, Nina Simone, Johnny Cash, Adele, Radiohead, Daft Punk, Bob Marley, Queen, Mozart, Pink Floyd,
        Aretha Franklin, David Bowie, Fleetwood Mac, Bach, Norah Jones, Stevie Wonder, Coldplay, Abba, Billie
        Holiday, Prince, Ray Charles, The Doors, Beethoven, Shakira, Metallica, Ella Fitzgerald, Santana, Handel,
        Madonna, The Clash, Brahms, Kate Bush, Elton John, Dolly Parton""",
        """Leonard Cohen, The Beatles, Chopin, Tina Turner, Louis Armstrong, Depeche Mode, Joni Mitchell, Blondie,
        Vivaldi""",
    ),
    "title": _open(
        """team lunch, budget review, piano lesson, yoga class, parents evening, book club, haircut, project kickoff,
        job interview, movie night, dance practice, garden party, eye exam, choir rehearsal, chess club, board
        meeting, car inspection, picnic, guitar lesson, tax appointment, staff meeting, birthday dinner, physics
        exam, poker night, school play, dog training, lunch with Sam, design workshop""",
        """swim training, wine tasting, pottery class, sales call, house viewing, blood test, quiz night, band
        practice, brunch""",
    ),
    "phrase": _open(
        """good morning, where is the exit, I would like a coffee, how much is this, see you tomorrow, I am allergic to
        nuts, the bill please, I lost my wallet, what time is it, nice to meet you, is this seat free, we need a
        doctor, I do not understand, two tickets please, the room is cold, my name is Sam, where can I park, have a
        good trip, do you speak English, turn left here, the food is great, I need a ticket, good night, how are
        you, I am hungry""",
        """I need a towel, when does it open, the soup is cold, can you help me, I would like to pay, is it far from
        here, we are lost, a table for four, thank you very much""",
    ),
}

# Values that measure something: a conversion stays within one measure.
MEASURES: Final[dict[Value, str]] = {
    **dict.fromkeys(("miles", "feet", "inches", "kilometers", "meters", "centimeters"), "length"),
    **dict.fromkeys(("pounds", "ounces", "kilograms", "grams"), "weight"),
    **dict.fromkeys(("gallons", "cups", "liters", "milliliters"), "volume"),
}
