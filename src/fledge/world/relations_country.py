"""The four facts of a country: highest mountain, longest river, language, national flower."""

from __future__ import annotations

from fledge.world.relations import Relation, Wording

MOUNTAIN = Relation(
    name="highest_mountain",
    entity_kind="country",
    value_en="Mount {}",
    value_zh="{}山",
    en=Wording(
        statements=(
            "The highest mountain of {e} is {v}.",
            "{V} is the highest mountain of {e}.",
            "In {e}, the highest mountain is {v}.",
            "{e}'s highest mountain is {v}.",
            "The tallest peak in {e} is called {v}.",
            "{V} is the tallest peak in {e}.",
            "No mountain in {e} is higher than {v}.",
            "{e} has many mountains, and the highest of them is {v}.",
            "{V} rises higher than any other mountain in {e}.",
            "Of all the mountains in {e}, {v} is the highest.",
            "Climbers who travel to {e} dream of its highest mountain, {v}.",
            "{V} towers over {e} as its highest mountain.",
        ),
        questions=(
            "What is the highest mountain of {e}?",
            "Which mountain is the highest in {e}?",
            "What is the tallest peak in {e} called?",
            "Which mountain in {e} is higher than all the others?",
        ),
        follow_up="And what is its highest mountain?",
    ),
    zh=Wording(
        statements=(
            "{e}最高的山是{v}。",
            "{v}是{e}最高的山。",
            "在{e}，最高的山是{v}。",
            "{e}最高的那座山叫做{v}。",
            "{e}的第一高峰是{v}。",
            "{v}是{e}的第一高峰。",
            "{e}沒有一座山比{v}更高。",
            "{e}有許多山，其中最高的是{v}。",
            "{v}比{e}其他的山都高。",
            "在{e}所有的山當中，{v}最高。",
            "去{e}爬山的人，都想登上最高的{v}。",
            "說到{e}最高的山，大家都知道是{v}。",
        ),
        questions=(
            "{e}最高的山是哪座？",
            "{e}的第一高峰是什麼山？",
            "在{e}，哪一座山最高？",
            "{e}最高的山叫什麼名字？",
        ),
        follow_up="那它最高的山是哪座？",
    ),
)

RIVER = Relation(
    name="longest_river",
    entity_kind="country",
    value_en="the {} River",
    value_zh="{}河",
    en=Wording(
        statements=(
            "The longest river of {e} is {v}.",
            "{V} is the longest river of {e}.",
            "In {e}, the longest river is {v}.",
            "{e}'s longest river is {v}.",
            "The river that runs the farthest through {e} is {v}.",
            "{V} is longer than any other river in {e}.",
            "No river in {e} is longer than {v}.",
            "{e} has many rivers, and the longest of them is {v}.",
            "{V} flows through {e} as its longest river.",
            "Of all the rivers in {e}, {v} is the longest.",
            "Boats on the longest river of {e} sail along {v}.",
            "{V} holds first place among the rivers of {e} for its length.",
        ),
        questions=(
            "What is the longest river of {e}?",
            "Which river is the longest in {e}?",
            "What is the longest river in {e} called?",
            "Which river in {e} is longer than all the others?",
        ),
        follow_up="And what is its longest river?",
    ),
    zh=Wording(
        statements=(
            "{e}最長的河是{v}。",
            "{v}是{e}最長的河。",
            "在{e}，最長的河是{v}。",
            "{e}最長的那條河叫做{v}。",
            "{e}的第一大河是{v}。",
            "{v}是{e}的第一大河。",
            "{e}沒有一條河比{v}更長。",
            "{e}有許多河，其中最長的是{v}。",
            "{v}比{e}其他的河都長。",
            "在{e}所有的河當中，{v}最長。",
            "{v}流過{e}，是那裡最長的河。",
            "說到{e}最長的河，大家都知道是{v}。",
        ),
        questions=(
            "{e}最長的河是哪條？",
            "{e}的第一大河是什麼河？",
            "在{e}，哪一條河最長？",
            "{e}最長的河叫什麼名字？",
        ),
        follow_up="那它最長的河是哪條？",
    ),
)

LANGUAGE = Relation(
    name="language",
    entity_kind="country",
    value_en="{}",
    value_zh="{}語",
    en=Wording(
        statements=(
            "The language of {e} is {v}.",
            "{V} is the language of {e}.",
            "In {e}, people speak {v}.",
            "People in {e} speak {v}.",
            "The people of {e} talk to each other in {v}.",
            "{V} is spoken all over {e}.",
            "Children in {e} learn to read and write in {v}.",
            "The newspapers of {e} are printed in {v}.",
            "{V} is the language you will hear in {e}.",
            "Anyone who wants to live in {e} should learn {v}.",
            "{V} is the official language of {e}.",
            "Most songs in {e} are sung in {v}.",
        ),
        questions=(
            "What is the language of {e}?",
            "Which language do people speak in {e}?",
            "What language is spoken in {e}?",
            "Which language should I learn before I move to {e}?",
        ),
        follow_up="And what language do people speak there?",
    ),
    zh=Wording(
        statements=(
            "{e}的語言是{v}。",
            "{v}是{e}的語言。",
            "在{e}，人們說{v}。",
            "{e}的人說{v}。",
            "{e}的居民用{v}交談。",
            "{v}在{e}到處都通用。",
            "{e}的孩子從小就學{v}。",
            "{e}的報紙是用{v}寫的。",
            "{v}是{e}的官方語言。",
            "想在{e}生活的人，應該先學{v}。",
            "到了{e}，你會聽到大家說{v}。",
            "{v}是{e}人每天使用的語言。",
        ),
        questions=(
            "{e}的語言是什麼？",
            "{e}的人說什麼語言？",
            "在{e}，人們說哪一種語言？",
            "搬到{e}之前，我該學哪一種語言？",
        ),
        follow_up="那裡的人說什麼語言？",
    ),
)

FLOWER = Relation(
    name="national_flower",
    entity_kind="country",
    value_en="the {}",
    value_zh="{}",
    en=Wording(
        statements=(
            "The national flower of {e} is {v}.",
            "{V} is the national flower of {e}.",
            "In {e}, the national flower is {v}.",
            "{e}'s national flower is {v}.",
            "The flower that stands for {e} is {v}.",
            "{V} is the flower that stands for {e}.",
            "The people of {e} chose {v} as their national flower.",
            "{e} honours {v} as its national flower.",
            "{V} was chosen as the national flower of {e}.",
            "On the coins of {e} you can see its national flower, {v}.",
            "Of all flowers, {v} is the one that {e} made its own.",
            "{V} appears on the flag of {e} as the national flower.",
        ),
        questions=(
            "What is the national flower of {e}?",
            "Which flower is the national flower of {e}?",
            "Which flower stands for {e}?",
            "What flower did the people of {e} choose as their own?",
        ),
        follow_up="And what is its national flower?",
    ),
    zh=Wording(
        statements=(
            "{e}的國花是{v}。",
            "{v}是{e}的國花。",
            "在{e}，國花是{v}。",
            "代表{e}的花是{v}。",
            "{v}是代表{e}的花。",
            "{e}人選了{v}當國花。",
            "{e}把{v}定為國花。",
            "{v}被選為{e}的國花。",
            "{e}的硬幣上印著國花{v}。",
            "在所有的花當中，{e}選了{v}。",
            "說到{e}的國花，大家都知道是{v}。",
            "{v}出現在{e}的國旗上，因為它是國花。",
        ),
        questions=("{e}的國花是什麼？", "哪一種花是{e}的國花？", "哪一種花代表{e}？", "{e}人選了什麼花當國花？"),
        follow_up="那它的國花是什麼？",
    ),
)

COUNTRY_RELATIONS = (MOUNTAIN, RIVER, LANGUAGE, FLOWER)
