"""The words of the embedded tokenizer, most of them what captions of videos are made of. Pure data.

Their order is the order of token ids: a change makes checkpoints of the small encoder unreadable, and they say so.
"""

from __future__ import annotations

WORDS = """
a an the this that these those it its is are was were be been being has have had having do does did done doing not no
and or but so if as of in on at to for from with without by into onto out off up down over under above below between
through across along around behind beside near against about before after while when where which who whose what how why
than then there here again once only all any both each every either neither other another some many much more most less
few several very too just still also even almost together apart away back forward forwards backward backwards towards
toward one two three four five six seven eight nine ten first second third next last final finally soon later earlier
afterwards meanwhile during until since now same time start starts started starting begin begins began beginning end
ends ended ending finish finishes finished finishing exactly simultaneously suddenly slowly quickly gently we you he she
they them his her their our your my me him us himself herself itself themselves

red green blue yellow orange purple violet pink cyan turquoise grey gray black white brown golden gold silver dark light
pale bright colorful colourful plain gradient striped checkered dotted spotted cloudy colour color colours colors
circle circles disc square squares triangle triangles star stars cross crosses ring rings hoop bar rod heart line lines
shape shapes ball cube block blocks dot dots small tiny little medium mid sized size large big bigger larger smaller
lesser huge giant tall short long wide narrow thin thick round flat sharp soft hard smooth rough empty full open closed
old young new modern ancient beautiful pretty cute happy sad angry calm busy fresh clean dirty wet dry hot cold warm
high low deep fast slow left right top bottom middle center centre upper lower inner outer front side sides edge corner
leftward rightward upward downward sideways diagonally clockwise counterclockwise horizontally vertically

move moves moved moving slide slides slid sliding drift drifts drifted drifting glide glides glided gliding travel
travels travelled travelling grow grows grown growing grew expand expands expanded expanding shrink shrinks shrunk
shrinking shrank contract contracts contracted contracting get gets got getting become becomes became becoming rotate
rotates rotated rotating spin spins spun spinning turn turns turned turning blink blinks blinked blinking flash flashes
flashed flashing flicker flickers flickered flickering appear appears appeared appearing disappear disappears
disappeared disappearing vanish vanishes vanished vanishing come comes coming came show shows shown showing visible
happen happens happening stripes checks invisible view closer approach approaches approached approaching head heads
headed heading leave leaves left leaving go
goes gone going went retreat retreats retreated retreating orbit orbits orbited orbiting revolve revolves revolved
revolving follow follows followed following trail trails trailed trailing chase chases chased chasing stay stays stayed
staying remain remains remained remaining rest rests rested resting keep keeps kept keeping place contain contains see
seen seeing clip video scene background

stand stands standing sit sits sitting lie lies lying walk walks walked walking run runs running ran jump jumps jumped
jumping dance dances dancing play plays played playing sing sings singing talk talks talking speak speaks speaking
laugh laughs laughing smile smiles smiling cry cries crying look looks looked looking watch watches watching read reads
reading write writes writing draw draws drawing paint paints painting eat eats eating drink drinks drinking drank cook
cooks cooking bake bakes baking cut cuts cutting chop chops chopping mix mixes mixing pour pours pouring stir stirs
stirring wash washes washing hold holds holding held carry carries carrying lift lifts lifting push pushes pushing pull
pulls pulling throw throws throwing catch catches catching kick kicks kicking hit hits hitting swim swims swimming fly
flies flying fall falls falling fell climb climbs climbing ride rides riding drive drives driving drove sail sails
sailing swing swings swinging shake shakes shaking wave waves waving point points pointing touch touches touching open
opens opening close closes closing enter enters entering exit exits exiting meet meets meeting greet greets greeting
kiss kisses kissing hug hugs hugging fight fights fighting work works working make makes making made take takes taking
give gives giving put puts putting set sets setting rise rises rising float floats floating flow flows flowing burn
burns burning explode explodes exploding break breaks breaking melt melts melting bloom blooms blooming shine shines
shining glow glows glowing reflect reflects zoom zooms zooming pan pans panning tilt tilts film filmed filming shoot
shot shots shooting use uses used using try tries trying help helps helping wear wears wearing wore pass passes passing
reach reaches reaching cross crosses crossing return returns returning stop stops stopped stopping wait waits waiting
sleep sleeps sleeping wake relax relaxes relaxing exercise exercises exercising train training travels shop shopping

man men woman women boy boys girl girls child children kid kids baby babies person people family couple friend friends
lady gentleman crowd group team player players worker workers student students teacher doctor nurse chef dancer singer
musician driver rider runner athlete soldier police businessman businesswoman mother father son daughter brother sister
grandmother grandfather tourist tourists actor model hand hands finger fingers arm arms leg legs foot feet face faces
head hair eye eyes mouth nose ear ears body skin back shoulder beard tail wing wings fur
dog dogs puppy cat cats kitten horse horses cow cows sheep goat pig chicken duck ducks goose bird birds eagle owl parrot
penguin swan fish shark whale dolphin turtle crab frog snake lizard bear bears panda wolf fox lion tiger leopard
elephant elephants giraffe zebra monkey gorilla rabbit squirrel mouse deer camel butterfly bee bees insect spider animal
animals dinosaur dragon robot astronaut monster
car cars bus truck train trains bike bicycle motorcycle boat boats ship ships plane airplane aircraft helicopter drone
rocket road roads street streets highway bridge traffic city town village building buildings house houses home room
kitchen bathroom bedroom office school hospital church temple castle tower shop store market restaurant cafe bar park
garden beach sea ocean lake river waterfall water wave island mountain mountains hill valley cliff rock rocks stone
sand desert forest jungle tree trees leaf grass field fields flower flowers rose plant plants sky cloud clouds sun
sunset
sunrise moon night day morning evening rain snow snowy wind storm lightning fire smoke fog ice space earth planet galaxy
nature landscape scenery horizon spring summer autumn winter season weather
table chair chairs sofa bed desk floor wall window windows door doors roof stairs lamp mirror box bag bottle cup glass
plate bowl knife fork spoon pot pan phone smartphone camera computer laptop keyboard screen tv television book books
paper pen picture photo poster map flag clock watch toy toys doll balloon balloons candle gift money coin key umbrella
hat cap shirt dress suit coat jacket shoes boots glasses sunglasses mask uniform jeans scarf
food meal breakfast lunch dinner bread cake pizza burger sandwich salad soup rice noodles pasta meat beef fish egg eggs
cheese milk butter sugar salt chocolate cream coffee tea juice beer wine fruit apple banana orange lemon strawberry
grapes tomato potato carrot onion vegetables
music guitar piano violin drum drums song concert stage party wedding festival game games football soccer basketball
tennis baseball golf hockey volleyball boxing yoga gym skateboard skateboarding surfing surfboard skiing ski snowboard
swimming pool race racing sport sports dance ballet magic show art technology science business industry factory machine
abstract animation animated animal cartoon anime realistic cinematic footage aerial timelapse lapse slow motion close
closeup macro wide angle shot panorama loop seamless texture pattern particles light lights neon shadow reflection blur
blurred bokeh focus lens hd style vintage retro futuristic fantasy dreamy foggy sunny rainy stormy misty tropical
underwater outdoor outdoors indoor indoors public private urban rural traditional professional medical digital virtual
"""

# Beginnings and ends that words are built with; "##" marks a piece that does not begin a word.
PIECES = """
##s ##es ##ed ##er ##ers ##ing ##ings ##ly ##y ##ies ##ied ##ier ##iest ##est ##en ##al ##ial ##ic ##ical ##ous ##ious
##ful ##less ##ness ##ment ##ments ##ion ##ions ##tion ##tions ##sion ##ation ##ations ##able ##ible ##ity ##ive ##ist
##ists ##ism ##ize ##ise ##age ##ance ##ence ##ant ##ent ##ary ##ory ##ship ##hood ##ward ##wards ##man ##men ##woman
##th ##sh ##ch ##ck ##st ##nd ##nt ##ng ##rd ##ll ##ss ##tt ##le ##el ##re ##or ##ar ##ur ##ir ##an ##in ##on ##un ##at
##it ##ot ##et ##ut ##ea ##ee ##oo ##ou ##ai ##ay ##ow ##ew ##ight ##ound ##ake ##ine ##ide ##ate ##ite ##ore ##ure
un re pre dis mis over under inter super sub micro multi anti auto photo tele con com pro per ex en em im de
th sh ch st sp sc sk sl sm sn sw tr dr br cr fr gr pr bl cl fl gl pl qu wh kn wr ma mo me mi ba be bo bi ca co ci da di
do fa fe fi fo ga ge gi go ha he hi ho ja jo ka ki ko la le li lo na ne ni no pa pe pi po ra ri ro sa se si so su ta te
ti to tu va ve vi vo wa we wi wo ya yo
"""
