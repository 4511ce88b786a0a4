"""What customers ask and how a help desk answers: the phrases of the quickstart's world.

Every phrase lives here once; `world` generates with them and `gold` recognises them.
"""

from __future__ import annotations

from dataclasses import dataclass

PRODUCTS = ("kettle", "lamp", "radio")
CITIES = ("Leeds", "Oslo", "Porto")
ORDERS = ("1042", "2317", "3780")
DAYS = ("Monday", "Friday", "Saturday")


@dataclass(frozen=True)
class Topic:
    """One kind of fact: a value for each slot, ways to ask for it and ways to state it."""

    name: str
    slots: tuple[str, ...]
    values: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


TOPICS = (
    Topic(
        "warranty",
        PRODUCTS,
        ("six months", "one year", "two years", "three years", "five years"),
        (
            "how long is the warranty on the {slot}",
            "what warranty does the {slot} have",
            "is there a warranty on the {slot}",
        ),
        (
            "The warranty on the {slot} is {value}.",
            "The {slot} comes with a warranty of {value}.",
        ),
    ),
    Topic(
        "price",
        PRODUCTS,
        ("15 euros", "25 euros", "40 euros", "60 euros", "90 euros"),
        ("how much is the {slot}", "what does the {slot} cost", "what is the price of the {slot}"),
        ("The price of the {slot} is {value}.", "The {slot} costs {value}."),
    ),
    Topic(
        "returns",
        PRODUCTS,
        ("7 days", "14 days", "30 days", "60 days"),
        (
            "can I return the {slot}",
            "how long can I keep the {slot} before returning it",
            "may I send the {slot} back",
        ),
        ("You can return the {slot} within {value}.", "We take the {slot} back for {value}."),
    ),
    Topic(
        "delivery",
        CITIES,
        ("one day", "two days", "three days", "four days", "a week"),
        (
            "how long does delivery to {slot} take",
            "how fast do you deliver to {slot}",
            "when would a parcel reach {slot}",
        ),
        ("Delivery to {slot} takes {value}.", "A parcel reaches {slot} in {value}."),
    ),
    Topic(
        "postage",
        CITIES,
        ("3 euros", "5 euros", "8 euros", "12 euros"),
        (
            "what is the postage to {slot}",
            "how much is shipping to {slot}",
            "what do you charge for shipping to {slot}",
        ),
        ("Shipping to {slot} costs {value}.", "The postage to {slot} is {value}."),
    ),
    Topic(
        "shop",
        CITIES,
        ("Mill Street", "Park Lane", "Station Road", "the Old Market", "Harbour Square"),
        (
            "where is your shop in {slot}",
            "what is the address of the shop in {slot}",
            "do you have a shop in {slot}",
        ),
        ("Our shop in {slot} is at {value}.", "You find our shop in {slot} at {value}."),
    ),
    Topic(
        "order",
        ORDERS,
        ("2 May", "5 May", "9 May", "14 May", "20 May"),
        (
            "when does order {slot} arrive",
            "where is my order {slot}",
            "what is the status of order {slot}",
        ),
        ("Order {slot} arrives on {value}.", "We deliver order {slot} on {value}."),
    ),
    Topic(
        "hours",
        DAYS,
        ("9 to 17", "10 to 16", "8 to 12", "12 to 20"),
        (
            "when are you open on {slot}",
            "what are your hours on {slot}",
            "can I come by on {slot}",
        ),
        ("On {slot} we are open from {value}.", "Our hours on {slot} are {value}."),
    ),
)
BY_NAME = {topic.name: topic for topic in TOPICS}

# How a question begins. After the empty one the question itself starts with a capital.
SALUTATIONS = ("", "Hello, ", "Hi, ", "Good morning, ", "Dear team, ")

WELCOMES = (
    "Thank you for your question!",
    "Hello and thank you for writing!",
    "Thanks for asking!",
)
FAREWELLS = (
    "Have a lovely day!",
    "We are always happy to help!",
    "Please write again any time!",
)
RUDENESS = ("Read the website next time.", "This is not my problem.", "You should know that.")
DODGES = ("I do not know.", "It depends.", "Someone else can tell you.")
RAMBLING = (
    "As you may know, our company has many products.",
    "By the way, we also have a newsletter.",
    "In general, many customers ask us many things.",
    "To be honest, it was a long day here.",
)
