"""The sentences that the background text is made of: rules that expand into each other.

`{word}` is another rule, a fact of the document (a name, a dish, ...) or a random word of a list.
No rule here has the form of the bundled instructions, and none of their wordings.
"""

from __future__ import annotations

GUIDE = {
  "doc": [
    "Eating out in {town}\n\n{intro} {visit_a} {visit_b}\n\n{link} {visit_c} {close}",
    "{intro}\n\n{visit_a} {gossip}\n\n{visit_b} {link_b} {visit_c}\n\n{close}",
    "A walk through {town}. {intro} {visit_a}\n\n{history}\n\n{visit_b} {close}",
    "{history} {intro} {visit_b}\n\n{visit_a} {weather}\n\n{close}",
  ],
  "intro": [
    "{town} is a {adjective} place between a {noun} and a {noun}, and people there like to eat.",
    "Few visitors come to {town} for the {noun}; most of them come for the food.",
    "When the {noun} closes in the evening, half of {town} looks for a table.",
    "{person}, who has lived in {town} for {many} years, showed us where to eat.",
    "We spent {many} days in {town} and had dinner in a new place every night.",
    "Nobody in {town} agrees about which kitchen is best, so we tried them ourselves.",
  ],
  "visit_a": [
    "We started at {name_a}, by the {area_a}, where the cooking is {cuisine_a}. {name_a} {cost_a}, "
    "and the {dish_a} was {food_word}. {detail}",
    "Ask anyone near the {area_a} for {name_a} and they will point at a {adjective} {noun}. "
    "Inside, {person_b} cooks {cuisine_a} dishes; {name_a} {cost_a}. {detail}",
    "{name_a} is the oldest {cuisine_a} kitchen of the {area_a}. The {dish_a} at {name_a} is "
    "{food_word}, and the place {cost_a}. {detail}",
  ],
  "visit_b": [
    "Then there is {name_b}. {detail} {name_b} lies in the {area_b}, it {cost_b}, and its "
    "{cuisine_b} menu changes with the {noun}. We had {dish_b}.",
    "In the {area_b} you find {name_b}, which {cost_b}. {person} ordered the {dish_b} there and "
    "called it {food_word}. The {cuisine_b} cook of {name_b} only smiled. {detail}",
    "{person} prefers {name_b} in the {area_b}: {cuisine_b} food, {dish_b} above all. "
    "{name_b} {cost_b}. {detail}",
  ],
  "visit_c": [
    "{name_c} surprised us: a {cuisine_c} house that {cost_c}, with {dish_c} on every {noun}.",
    "If {name_a} is full, {name_c} is not far. It cooks {cuisine_c} food and it {cost_c}. {detail}",
    "At the end we tried {name_c}. {detail} The {dish_c} was {food_word}, the bread was "
    "{adjective}.",
  ],
  "detail": [
    "The {noun} by the door is {adjective} and the {noun} is {adjective}.",
    "Most guests are {guests}.",
    "It is a good place for {guests}.",
    "You will meet many {guests} here.",
    "The waiter told us a long story about a {adjective} {noun}.",
    "They close at {hour}, so come early.",
    "A {adjective} {animal} sleeps under the {noun}.",
    "On {day} there is music: a {adjective} {noun} and somebody with a {instrument}.",
    "The walls are {colour}, and over the {noun} hangs a picture of a {noun}.",
    "{person} would give it {many} stars out of five, I would give it {many_b}.",
    "Do not sit next to the {noun}; it is {adjective} there.",
    "",
    "",
  ],
  "gossip": [
    "People say that {name_a} once belonged to a {job} from {place}.",
    "The owner, a {adjective} {job}, came from {place} {many} years ago with one {noun}.",
    "My {relation} says the {dish_a} was better when {person_b} was the cook.",
  ],
  "link": [
    "The next day it was {weather_word}.",
    "On the other side of the {noun} things look different.",
    "After a rest by the {noun} we were hungry again.",
    "But that is not the whole of {town}.",
  ],
  "link_b": ["Not far from there,", "For something else:", "And then,", "Last of all."],
  "history": [
    "{town} was built around a {noun}, and later around a {noun}. In the year {year} a {job} "
    "opened the first inn.",
    "A {job} called {person_b} brought the {dish_a} to {town} in {year}, or so the story goes.",
    "The {area_a} of {town} was once full of {job}s. Today there are more kitchens than {noun}s.",
  ],
  "weather": ["It was {weather_word} all day.", "Outside it had become {weather_word}.", ""],
  "close": [
    "We would go back to {name_a}, and my {relation} would go back to {name_b}.",
    "If you have one evening only, take {name_b} for the {dish_b}.",
    "{name_a} for the {dish_a}, {name_b} for the {noun}: that is {town}.",
    "The train to {place} leaves at {hour}. Eat first.",
    "",
  ],
  "cost_a": ["{cost}"],
  "cost_b": ["{cost}"],
  "cost_c": ["{cost}"],
  "cost": [
    "is cheap",
    "is not expensive",
    "is rather expensive",
    "asks a moderate price",
    "costs next to nothing",
    "has low prices",
    "has high prices",
    "is expensive even on a {day}",
  ],
}

DIARY = {
  "doc": [
    "{day}. {start} {meal} {talk} {end}",
    "{start}\n\n{meal}\n\n{talk} {end}",
    "Dear {person},\n\n{letter} {meal} {end}\n\nYours, {person_b}",
    '{start} {talk}\n\n"{quote}" said {person}. "{quote}" answered {person_b}.\n\n{meal} {end}',
  ],
  "start": [
    "{person} and I took the {adjective} road to {town}.",
    "It was {weather_word} in {town}, and {person_b} wanted to see the {noun}.",
    "My {relation} had told me about {name_a} for {many} years.",
    "We had lost the {noun}, and {person_b} was hungry, so we stopped in {town}.",
    "This morning I found a {adjective} {noun} in the {area_a} of {town}.",
  ],
  "meal": [
    "At {name_a} we ordered {dish_a} and {dish_b}. The {dish_a} was {food_word}; the {dish_b} was "
    "{food_word}. {service}",
    "{person} chose {name_a} because it is {cuisine_a}, and I chose the {dish_a} because it was "
    "{adjective}. {service}",
    "So we went to {name_a}, near the {area_a}. I ate {dish_b} until I could not move. {service}",
    "We wanted a table at {name_b}, but {name_b} was full of {guests}, so we ate {dish_a} at "
    "{name_a} instead. {service}",
  ],
  "service": [
    "The waiter was {adjective}, and he forgot the {noun}.",
    "The bill came with a {noun}.",
    "We paid {number} coins, which is {price_word}.",
    "I gave {name_a} {many} stars in my notebook.",
    "Nobody was in a hurry.",
    "A child at the next table played with a {noun} and a {noun}.",
  ],
  "talk": [
    "We talked about the {noun} that {person} had bought in {place}.",
    "{person_b} told me that a {job} and a {job} had a quarrel over a {adjective} {noun}.",
    "Later {person} said that in {place} the {noun} is always {adjective}, but I do not believe "
    "it.",
    "There was a {adjective} {noun} by the {noun}, and beside it a {adjective} {noun}.",
  ],
  "letter": [
    "You asked me where to eat in {town}.",
    "I am writing from {town}, where it is {weather_word}.",
    "Thank you for the {noun}. It is {adjective}, and so am I.",
    "We arrived in {town} on {day}.",
  ],
  "quote": [
    "I have never seen such a {adjective} {noun},",
    "Is the {dish_a} always so {adjective}?",
    "You should have gone to {name_b},",
    "In {place} this would cost {number} coins,",
    "Take the {noun} and leave the {noun},",
    "What a {adjective} evening,",
  ],
  "end": [
    "Then we walked home along the {noun}.",
    "I want to come back in the {season}.",
    "{person} slept in the train.",
    "Tomorrow we go to {place}.",
    "It was a {adjective} day.",
    "I still think about that {dish_a}.",
  ],
}

PRODUCT = {
  "doc": [
    "{buy} {first} {turn_any} {end_any}",
    "{buy}\n\n{first} {use}\n\n{turn_any} {use} {end_any}",
    "{use} {buy} {turn_any} {first} {end_any}",
    "Two {product}s, one week\n\n{compare} {turn_any}\n\n{compare} {end_any}",
    "The repair shop of {person} in {place} sees every kind of {product}. {shop} {shop} {compare}",
  ],
  "buy": [
    "I bought this {product} in a shop in {place} {many} months ago.",
    "My {relation} gave me a {product} for my birthday.",
    "{person} needed a new {product}, and so did I.",
    "The old {product} had a {blame} {part}, so we ordered another.",
    "After {many} years with a {blame} {product} I went to {place} to find a better one.",
    "It was {weather_word}, the parcel was late, and the {product} came without a {part}.",
  ],
  "first": [
    "The {part} is {praise} and the {part_b} is {praise}, which I had not expected.",
    "At first sight the {product} looks {adjective}; the {part} feels {praise}.",
    "Its {part} is {praise}, but the {part_b} is {blame}.",
    "The {part_b} was {blame} from the first day.",
    "Out of the box the {part} was {blame}, and the {part_b} was not much better.",
  ],
  "use": [
    "We use it every {day}, mostly in the {noun}.",
    "I put the {product} next to the {noun}.",
    "My {relation} took the {product} to {place} and brought it back without the {part}.",
    "The {product} weighs as much as a {noun} and is just as {adjective}.",
    "Once it fell into the {noun}, and the {part} still is {praise}.",
    "The manual of the {product} has {number} pages, and none of them speaks of the {part}.",
  ],
  "turn_any": ["{turn}"],
  "compare": [
    "The first {product} has a {praise} {part}, the second a {blame} {part}.",
    "{person} likes the one with the {praise} {part}; I like the one with the {praise_b} {part_b}.",
    "Both have a {part}; only one of them has a {part} that is {praise}.",
    "For {number} coins you get a {part_b} that is {blame}; for {number_b} coins you get a "
    "{praise} one.",
  ],
  "shop": [
    "Most often the {part} is {blame}.",
    '"Look at this {part}," says {person}. "How {blame} it is!"',
    "A {adjective} {product} needs a {praise} {part}, says the {relation} of {person}.",
    "People bring a {product} because of the {part} and leave with a new {part_b}.",
  ],
  "end_any": ["{end}"],
}
TURNS = {
  1: [
    "After a day it broke.",
    "Then the smoke came out.",
    "I brought it back and shouted at the {job}.",
  ],
  2: ["Soon it made me angry.", "I have to repair it every {day}.", "It works when it wants to."],
  3: [
    "It does what a {product} does.",
    "Some days I like it, some days I do not.",
    "It is neither better nor worse than the old one.",
  ],
  4: [
    "I have come to like it.",
    "It has never let me down, almost never.",
    "My {relation} wants one too.",
  ],
  5: [
    "I would not give it away for a {noun} of gold.",
    "Every morning I am glad of it.",
    "I bought a second one for my {relation}.",
  ],
}
ENDS = [
  "All in all: {verdict}. I gave it {stars} out of five.",
  "My {relation} says: {verdict}.",
  "So, {stars}, because it was {verdict_plain}.",
  'On a card I wrote "{verdict}" and {stars}.',
  "{verdict}. That makes {stars} from me.",
  "In short: {product} with a {tone} {part}, {stars}.",
]

TALE = {
  "doc": [
    "{a} {b} {c} {d}",
    "{a} {b}\n\n{b} {c}\n\n{c} {d}",
    "{news} {b} {d}",
    "{news} {news} {c}",
  ],
  "a": [
    "Once a {adjective} {job} lived in {place} with a {animal} and a {noun}.",
    "In {place} there was a {noun} that nobody could open.",
    "{person} was a {job}, and {person_b} was a {job}, and they shared one {noun}.",
    "Every {day} {person} carried a {adjective} {noun} from {place} to {town}.",
  ],
  "b": [
    "One {day} the {noun} was gone, and in its place lay a {adjective} {noun}.",
    "{person} asked the {job} for a {noun}, but the {job} only had a {noun}.",
    '"Give me the {noun}," said {person}, "and I will give you {number} coins."',
    "The {animal} looked at the {noun}, and the {noun} fell into the {noun_b}.",
    "They put the {noun_b} on a {noun}, and the {noun_b} stayed there for {many} years.",
  ],
  "c": [
    "So {person} went to {place} to find another {noun_b}, {adjective} and {adjective}.",
    "{person_b} did not want the {noun_b}. {person_b} wanted the {noun}.",
    "In the {season} it became {weather_word}, and the road to {town} was {adjective}.",
    "They cooked {dish_a} and waited for the {job}.",
  ],
  "d": [
    "And that is why there is a {noun} in {town} today.",
    "In the end {person} kept the {noun_b}.",
    "After that {person} and {person_b} were friends.",
    "The {animal} slept through it all.",
  ],
  "news": [
    "The council of {town} has bought a {adjective} {noun} for {number} thousand coins.",
    "In {town}, {person} the {job} opened a shop for {product}s on {day}.",
    "The {noun} of {place} stays closed until the {season} because of a {adjective} {noun}.",
    "{number} people came to {town} on {day} to see the {animal} of {person_b}.",
    "The price of {dish_a} has risen from {number} to {number_b} coins in {town}.",
  ],
}
