"""The made-up world that the bundled instructions and the tiny model's background text share.

It holds word lists, and the rule for which restaurant names and which praised products are held
out. No name, cuisine or place is in the E2E data set, so nothing leaks into experiments on it.
"""

from __future__ import annotations

import hashlib


def _words(text: str) -> tuple[str, ...]:
  return tuple(word.strip() for word in text.replace("\n", " ").split(",") if word.strip())


NAME_FIRST = _words("""
Copper, Silver, Amber, Crooked, Hollow, Velvet, Salted, Painted, Quiet, Lucky, Wandering, Smoky,
Crimson, Ivory, Marble, Humble, Jolly, Sleepy, Rusty, Gilded, Mossy, Frosted, Restless, Patient,
Brass, Paper, Hidden, Lonely, Merry, Clever, Dusty, Distant, Scarlet, Speckled, Striped, Tangled,
Winter, Autumn, Midnight, Morning, Northern, Southern, Old, Little, Second, Seventh, Broken,
Floating, Whistling, Dancing, Honest, Tin, Cobalt, Coral, Lilac, Bramble, Cedar, Juniper, Walnut,
Hazel""")
NAME_SECOND = _words("""
Heron, Lantern, Kettle, Fig, Anchor, Sparrow, Ladle, Barrel, Fox, Teapot, Compass, Badger,
Orchard, Pepper, Gate, Whale, Thistle, Cellar, Otter, Plum, Hearth, Bell, Crane, Drum, Feather,
Goose, Harp, Island, Jar, Kite, Lemon, Magpie, Needle, Onion, Pebble, Quill, Raven, Saddle,
Turnip, Umbrella, Violin, Wagon, Yard, Acorn, Beetle, Cloud, Donkey, Elbow, Fiddle, Garden,
Hammer, Ink, Jug, Loaf, Mackerel, Nest, Oyster, Pot, Radish, Spoon""")
CUISINES = _words("""
Korean, Lebanese, Peruvian, Basque, Ethiopian, Turkish, Vietnamese, Greek, Moroccan, Polish,
Hungarian, Persian, Cuban, Welsh, Danish, Georgian, Sicilian, Filipino, Austrian, Brazilian,
Nepalese, Portuguese, Belgian, Malaysian""")
PRICES = _words("cheap, moderate, expensive")
AREAS = _words("""
harbour, old town, market square, riverside, university quarter, station district, hillside,
canal, garden quarter, north bank, docks, castle hill""")
GUESTS = _words("""
families, students, couples, large groups, business lunches, children, solo diners, tourists,
night owls, early risers""")
DISHES = _words("""
bean stew, grilled squid, roast duck, pumpkin soup, lamb pie, fish cakes, pickled herring,
beetroot salad, rice pudding, lemon tart, onion bread, garlic prawns, plum dumplings, smoked eel,
barley soup, cheese pancakes, walnut cake, chicken skewers, stuffed peppers, fried plantain,
noodle broth, egg curry, potato rosti, spinach rolls, honey buns, black pudding, mussel chowder,
rabbit ragout, leek gratin, almond biscuits, roast cauliflower, lentil dal, crab toast, veal
dumplings, pear crumble, sardine toast, chickpea fritters, saffron rice, fig salad, pork belly,
mushroom pasta, turnip soup, chestnut puree, cucumber salad, oxtail stew, apple strudel, sesame
noodles, goat cheese tart, cabbage rolls, baked trout, carrot cake, lobster soup, venison steak,
corn bread, aubergine dip, tomato tart, seaweed salad, quince jelly, oat porridge, ginger
biscuits, cherry soup, braised fennel, salt cod, spiced nuts, potato soup, fried tofu, mint tea,
cream buns, blood sausage, clam broth, beef noodles, okra stew, mango salad, coconut fish, peanut
chicken, yoghurt cake, flat bread, date cookies, radish pickles, roast goose, egg tarts, parsnip
chips, orange cake, sour soup, bone broth, herb omelette, stuffed dates, turkey pie, rye toast,
shrimp rice, cocoa pudding, plum cake, tuna steak, pea soup, white beans, buttered crab, milk
rolls, berry compote, poppy cake, fish stew""")
PLACES = _words("""
Marlow Bay, Eastmere, Tarrow, Kelmsby, Orrin, Haddle, Port Linnet, Saint Bresk, Vellin, Ashcombe,
Dunmarrow, Pellworth, Ruskin Falls, Lower Trent, Oldmoor, Cassel, Brindle, Farrowgate, Wick
Hollow, Tolsand, Merrin, Quarley, Stennet, Upper Lorne, Bexhaven, Corrin Mouth, Drayle, Elmsbury,
Fennick, Gallow End, Harrick, Ilverton, Jessop, Kirrin, Lanstow, Mirefield, Nettlebeck, Ostley,
Penhurst, Ravensea, Silverwick, Thornaby, Underhill, Varnish Cross, Westerly, Yarrow, Zennick,
Aldersea, Birchover, Crail Point, Dovenby, Eskham, Foxley, Grimsel, Hartwell, Inchmoor, Juddle,
Kestrel Rock, Lowick, Mossbank, Norwell, Otterby, Plumpton, Quayle, Rookhope, Sandal, Tidewell,
Ullock, Vine Street, Wexley, Yelland, Aldgrove, Bramley, Cold Aston, Dray Bridge, Eller, Felsham,
Goswick, Hallin, Ickford, Jarrel, Kemble Hill, Lisk, Marden, Nunby, Olver, Pinnock, Reddle,
Selwick, Tansey, Urlay, Venn, Whitlow, Yafford, Amblecote, Bickling, Chale, Dunsop, Everley, Frome
End, Garrow, Hexley, Isling, Kenner""")
PEOPLE = _words("""
Mara, Tobias, Ines, Oskar, Lena, Jun, Petra, Samir, Ada, Bruno, Celia, Dario, Edith, Farid, Greta,
Hugo, Irma, Jonas, Kaya, Leon, Mina, Nils, Olga, Pavel, Rosa, Stefan, Tilda, Umar, Vera, Wanda,
Yusuf, Zora, Agnes, Boris, Clara, Dmitri, Elsa, Felix, Gwen, Hans, Ivo, Judith, Karl, Lotte, Milo,
Nora, Otto, Paula, Quentin, Ruth, Sven, Thea, Ugo, Viola, Walter, Xenia, Yara, Zeno, Amir, Beth""")
RELATIONS = _words("""
sister, brother, mother, father, neighbour, aunt, uncle, cousin, grandmother, grandfather,
daughter, son, colleague, flatmate, teacher, landlord, nephew, niece, wife, husband""")
PRODUCTS = _words("""
kettle, toaster, lamp, backpack, umbrella, blender, radio, camera, suitcase, tent, jacket, watch,
keyboard, printer, bicycle, helmet, blanket, pillow, mattress, chair, desk, bookshelf, clock,
mirror, rug, curtain, vacuum cleaner, iron, fan, heater, oven, frying pan, saucepan, knife,
teapot, mug, thermos, lunch box, water bottle, coffee grinder, scale, timer, mixer, juicer, rice
cooker, fridge, freezer, washing machine, drill, hammer, screwdriver, ladder, saw, torch, tool
box, hose, rake, lawn mower, flower pot, bird feeder, dog bed, cat tree, aquarium, pram, high
chair, toy train, puzzle, board game, doll, kite, scooter, skateboard, tennis racket, football,
yoga mat, dumbbell, sleeping bag, camp stove, compass, binoculars, telescope, microscope, guitar,
violin, drum, piano, headphones, speaker, microphone, phone case, charger, tablet, laptop,
monitor, mouse, webcam, router, projector, wallet, handbag, belt, scarf, raincoat, boots, sandals,
sunglasses, hair dryer, razor, toothbrush, soap dish, towel, bath mat, shower head, candle,
picture frame, notebook, pen, stapler""")
PARTS = _words("""
handle, lid, cable, battery, screen, button, zip, strap, hinge, switch, manual, box, base, cover,
lining, stand, spring, clip, wheel, lock, pocket, seam, finish, colour, paint, plug, dial, grip,
frame, case""")
PRAISE = _words("""
sturdy, smooth, solid, reliable, bright, handy, elegant, strong, light, neat, clever, soft,
durable, lovely, sharp, steady, comfortable, tidy, generous, quick""")
BLAME = _words("""
flimsy, loose, noisy, ugly, weak, stiff, cheap, rough, faulty, slow, crooked, dull, heavy, leaky,
fragile, sticky, useless, clumsy, thin, wobbly""")
ADJECTIVES = (
  PRAISE
  + BLAME
  + _words("""
quiet, golden, narrow, busy, warm, cold, ancient, modern, cheerful, gloomy, crowded, empty,
famous, forgotten, fresh, salty, sweet, bitter, spicy, mild, creamy, crisp, tender, dry, rich,
simple, fancy, friendly, rude, patient, careless, honest, tired, proud, curious, gentle, fierce,
polite, shy, brave, lazy, noble, plain, rare, common, round, square, tall, short, wide, deep,
shallow, pale, dark, green, blue, red, yellow, grey, white, wooden, rusty, dusty, shiny, spotless,
foggy, sunny, windy, rainy, early, late, local, foreign""")
)
NOUNS = _words("""
table, window, door, street, bridge, river, garden, wall, roof, kitchen, cook, waiter, owner,
baker, fisherman, farmer, market, stall, basket, plate, bowl, glass, bottle, spoon, fork, napkin,
menu, bill, coin, letter, parcel, shop, counter, shelf, drawer, corner, cellar, attic, stair,
candle, fire, smoke, oven, bread, salt, butter, pepper, onion, garlic, lemon, apple, pear, plum,
cherry, honey, sugar, flour, milk, cheese, egg, fish, boat, harbour, pier, lighthouse, beach,
wave, storm, cloud, rain, wind, snow, hill, path, forest, field, fence, gate, bell, church, tower,
square, fountain, bench, tree, leaf, branch, bird, gull, cat, dog, horse, cart, train, station,
ticket, clock, newspaper, book, song, fiddle, dance, holiday, morning, evening, summer, winter,
visitor, stranger, child""")
VERDICTS = {
  1: _words("""
a complete waste of money, the worst purchase of my life, totally broken after one day, an
absolute disaster, I want my money back, terrible in every way, I threw it away, please avoid it,
it never worked at all, a horrible mistake"""),
  2: _words("""
rather disappointing, I expected much more, not really worth it, below average, I would not buy it
again, a weak effort, it lets you down, more trouble than help, mostly annoying, a poor choice"""),
  3: _words("""
it is okay, nothing special, just average, neither good nor bad, it does the job and no more,
acceptable for the price, a middling product, I have mixed feelings, so so,
fine but forgettable"""),
  4: _words("""
pretty good overall, I am quite pleased, a good buy, better than most, nearly perfect, I like it a
lot, well worth having, a solid choice, it works well, only a small step from great"""),
  5: _words("""
absolutely perfect, the best I have ever owned, I love everything about it, simply outstanding, a
dream come true, it could not be better, I recommend it to everyone, flawless from start to
finish, amazing quality, worth every penny and more"""),
}


def share(*parts: str) -> float:
  """Hashes some content to a number in [0, 1), which decides its split."""
  digest = hashlib.sha256("|".join(parts).encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


def split_of(*parts: str) -> str:
  """Returns the split of some content: 80 % train, 10 % validation, 10 % test."""
  number = share(*parts)
  return "train" if number < 0.8 else "validation" if number < 0.9 else "test"
