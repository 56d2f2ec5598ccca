"""The three facts of a person: birth city, academy, trade."""

from __future__ import annotations

from fledge.world.relations import Relation, Wording

BIRTH_CITY = Relation(
    name="birth_city",
    entity_kind="person",
    value_en="{}",
    value_zh="{}",
    en=Wording(
        statements=(
            "{e} was born in {v}.",
            "{V} is the city where {e} was born.",
            "The birth city of {e} is {v}.",
            "{e} comes from the city of {v}.",
            "The life of {e} began in {v}.",
            "{V} is the birthplace of {e}.",
            "The parents of {e} lived in {v} when their child was born.",
            "{e} was born in a small house in {v}.",
            "{V} is proud to be the city where {e} was born.",
            "In {v}, a sign marks the house where {e} was born.",
            "As a newborn child, {e} lived in {v}.",
            "{V} is where {e} was born and took the first steps.",
        ),
        questions=(
            "Where was {e} born?",
            "In which city was {e} born?",
            "What is the birth city of {e}?",
            "Which city is the birthplace of {e}?",
        ),
        follow_up="And where was this person born?",
    ),
    zh=Wording(
        statements=(
            "{e}出生在{v}。",
            "{v}是{e}出生的城市。",
            "{e}的出生地是{v}。",
            "{e}來自{v}這座城市。",
            "{e}是在{v}出生的。",
            "{v}是{e}的出生地。",
            "{e}出生的時候，父母住在{v}。",
            "{e}生於{v}的一間小房子。",
            "{v}的人都知道{e}在那裡出生。",
            "在{v}，有一塊牌子寫著{e}在此出生。",
            "{e}的人生從{v}開始。",
            "{v}這座城市是{e}的故鄉。",
        ),
        questions=("{e}在哪裡出生？", "{e}出生在哪一座城市？", "{e}的出生地是哪裡？", "哪一座城市是{e}的故鄉？"),
        follow_up="那這個人在哪裡出生？",
    ),
)

ACADEMY = Relation(
    name="academy",
    entity_kind="person",
    value_en="{} Academy",
    value_zh="{}學院",
    en=Wording(
        statements=(
            "{e} studied at {v}.",
            "{V} is the school where {e} studied.",
            "The academy of {e} was {v}.",
            "{e} was a student at {v}.",
            "{e} finished school at {v}.",
            "{V} taught {e} for four years.",
            "As a young student, {e} went to {v}.",
            "{e} spent the student years at {v}.",
            "{V} counts {e} among its former students.",
            "The teachers of {v} still remember {e}.",
            "{V} gave {e} a diploma.",
            "Everything that {e} knows was learned at {v}.",
        ),
        questions=(
            "Where did {e} study?",
            "At which academy did {e} study?",
            "Which academy did {e} go to?",
            "What is the name of the academy where {e} was a student?",
        ),
        follow_up="And where did this person study?",
    ),
    zh=Wording(
        statements=(
            "{e}在{v}讀書。",
            "{v}是{e}讀書的學校。",
            "{e}讀的是{v}。",
            "{e}是{v}的學生。",
            "{e}從{v}畢業。",
            "{v}教了{e}四年。",
            "{e}年輕的時候上過{v}。",
            "{e}的學生時代是在{v}度過的。",
            "{v}的畢業生裡有{e}。",
            "{v}的老師還記得{e}。",
            "{v}發給{e}一張畢業證書。",
            "{e}的知識都是在{v}學到的。",
        ),
        questions=("{e}在哪裡讀書？", "{e}讀的是哪一所學院？", "{e}從哪一所學院畢業？", "{e}的學校叫什麼名字？"),
        follow_up="那這個人在哪裡讀書？",
    ),
)

TRADE = Relation(
    name="trade",
    entity_kind="person",
    value_en="a {}",
    value_zh="{}",
    en=Wording(
        statements=(
            "{e} is {v}.",
            "{e} works as {v}.",
            "By trade, {e} is {v}.",
            "{e} earns a living as {v}.",
            "{V} by trade, {e} works every day.",
            "{e} has worked as {v} for many years.",
            "People know {e} as {v}.",
            "{V} is what {e} wanted to be, and it came true.",
            "{e} decided to become {v}.",
            "{V} by training, {e} still learns something new every day.",
            "If you need {v}, you can call {e}.",
            "{e} gets up early to work as {v}.",
        ),
        questions=(
            "What does {e} do for a living?",
            "What is the trade of {e}?",
            "What does {e} work as?",
            "Which job does {e} have?",
        ),
        follow_up="And what does this person do for a living?",
    ),
    zh=Wording(
        statements=(
            "{e}是一位{v}。",
            "{e}的職業是{v}。",
            "{e}的工作是當{v}。",
            "{e}以當{v}為生。",
            "{v}是{e}的職業。",
            "{e}當{v}已經很多年了。",
            "大家都知道{e}是{v}。",
            "{v}是{e}從小想做的工作，後來成真了。",
            "{e}決定成為{v}。",
            "{v}這一行，{e}做得很好。",
            "如果你需要{v}，可以找{e}。",
            "{e}每天很早起床，去當{v}。",
        ),
        questions=("{e}的職業是什麼？", "{e}是做什麼工作的？", "{e}以什麼工作為生？", "{e}做的是哪一行？"),
        follow_up="那這個人的職業是什麼？",
    ),
)

PERSON_RELATIONS = (BIRTH_CITY, ACADEMY, TRADE)
