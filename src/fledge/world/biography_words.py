"""What biographies are written with: wordings of each attribute, questions about it, and real words as values.

In a wording the name {n} comes before the value {v}: a reader knows whose value it is when it comes. Only NAME_LAST turns
that round. In questions the name is never the first word, so it is the same tokens there as in a text.
"""

from __future__ import annotations

from fledge.world.words import _table


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip

MAJORS = _table(
    """physics/物理學, chemistry/化學, biology/生物學, geology/地質學, astronomy/天文學, mathematics/數學, statistics/統計學,
    medicine/醫學, nursing/護理學, pharmacy/藥學, dentistry/牙醫學, law/法律學, economics/經濟學, finance/財務學,
    accounting/會計學, marketing/行銷學, management/管理學, sociology/社會學, psychology/心理學, philosophy/哲學,
    history/歷史學, geography/地理學, linguistics/語言學, literature/文學, journalism/新聞學, theology/神學, music/音樂學,
    drama/戲劇學, painting/繪畫, sculpture/雕塑, design/設計學, architecture/建築學, engineering/工程學, robotics/機器人學,
    computing/資訊學, agriculture/農學, forestry/森林學, ecology/生態學, education/教育學, archaeology/考古學"""
)

ROLES = _table("vocalist/主唱, guitarist/吉他手, bassist/貝斯手, drummer/鼓手")

STATEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "birthdate": {
        "en": _lines(
            """{n} was born on {v}.
            {n} came into the world on {v}.
            {n} first saw the light on {v}.
            {n} keeps the birthday of {v}.
            {n} took the first breath on {v}.
            {n} has lived since {v}.
            {n} entered life on {v}.
            {n} was delivered on {v}.
            {n} arrived on {v}.
            {n} celebrates the day of {v}.
            {n} began life on {v}.
            {n} had the first day on {v}."""
        ),
        "zh": _lines(
            """{n}生於{v}。
            {n}的生日是{v}。
            {n}在{v}出生。
            {n}誕生於{v}。
            {n}於{v}來到世上。
            {n}的出生日期是{v}。
            {n}是{v}生的。
            {n}的人生始於{v}。
            {n}第一次睜眼是在{v}。
            {n}慶祝的日子是{v}。
            {n}在{v}呱呱墜地。
            {n}的第一天是{v}。"""
        ),
    },
    "birthcity": {
        "en": _lines(
            """{n} was born in {v}.
            {n} grew up in {v}.
            {n} is a native of {v}.
            {n} hails from {v}.
            {n} calls {v} a hometown.
            {n} spent a childhood in {v}.
            {n} has roots in {v}.
            {n} comes from the city of {v}.
            {n} was raised in {v}.
            {n} started life in {v}.
            {n} first lived in {v}.
            {n} owes everything to the streets of {v}."""
        ),
        "zh": _lines(
            """{n}出生於{v}。
            {n}的家鄉是{v}。
            {n}自小在{v}長大。
            {n}是{v}人。
            {n}來自{v}。
            {n}的童年在{v}度過。
            {n}的根在{v}。
            {n}在{v}出生。
            {n}從{v}這座城市走出來。
            {n}小時候住在{v}。
            {n}生在{v}。
            {n}的出生地是{v}。"""
        ),
    },
    "university": {
        "en": _lines(
            """{n} studied at {v} University.
            {n} attended {v} University.
            {n} graduated from {v} University.
            {n} went to {v} University.
            {n} holds a degree of {v} University.
            {n} was a student at {v} University.
            {n} is an alumnus of {v} University.
            {n} learned a lot at {v} University.
            {n} enrolled at {v} University.
            {n} completed every course at {v} University.
            {n} received an education at {v} University.
            {n} was taught by professors of {v} University."""
        ),
        "zh": _lines(
            """{n}就讀{v}大學。
            {n}畢業於{v}大學。
            {n}是{v}大學的校友。
            {n}曾在{v}大學求學。
            {n}拿到{v}大學的學位。
            {n}考上{v}大學。
            {n}在{v}大學讀書。
            {n}的母校是{v}大學。
            {n}進了{v}大學。
            {n}受教於{v}大學的教授。
            {n}的學歷來自{v}大學。
            {n}在{v}大學完成學業。"""
        ),
    },
    "major": {
        "en": _lines(
            """{n} majored in {v}.
            {n} focused on {v}.
            {n} chose the field of {v}.
            {n} specialized in {v}.
            {n} took a degree in {v}.
            {n} wrote a thesis on {v}.
            {n} devoted those years to {v}.
            {n} passed the exams in {v}.
            {n} was drawn to {v}.
            {n} trained in {v}.
            {n} read many books about {v}.
            {n} is a graduate in {v}."""
        ),
        "zh": _lines(
            """{n}主修{v}。
            {n}的專業是{v}。
            {n}選擇了{v}這個領域。
            {n}專攻{v}。
            {n}讀的是{v}。
            {n}的論文寫{v}。
            {n}鑽研{v}。
            {n}通過了{v}的考試。
            {n}熱愛{v}。
            {n}受過{v}的訓練。
            {n}讀過許多{v}的書。
            {n}的科系是{v}。"""
        ),
    },
    "employer": {
        "en": _lines(
            """{n} works for {v}.
            {n} is employed by {v}.
            {n} has a job at {v}.
            {n} built a career at {v}.
            {n} earns a living at {v}.
            {n} joined the company {v}.
            {n} serves the firm {v}.
            {n} is on the staff of {v}.
            {n} spends the days working at {v}.
            {n} signed a contract with {v}.
            {n} leads a team at {v}.
            {n} was hired by {v}."""
        ),
        "zh": _lines(
            """{n}在{v}公司上班。
            {n}任職於{v}公司。
            {n}受雇於{v}公司。
            {n}替{v}公司工作。
            {n}是{v}公司的員工。
            {n}加入了{v}公司。
            {n}的雇主是{v}公司。
            {n}的事業在{v}公司。
            {n}與{v}公司簽約。
            {n}在{v}公司帶領團隊。
            {n}被{v}公司錄用。
            {n}在{v}公司服務。"""
        ),
    },
    "band": {
        "en": _lines(
            """{n} is the {r} of {v}.
            {n} plays as the {r} of {v}.
            {n} is on stage as the {r} of {v}.
            {n} became the {r} of the band {v}.
            {n} tours as the {r} of {v}.
            {n} is known as the {r} of {v}.
            {n} serves as the {r} in {v}.
            {n} was chosen as the {r} for {v}.
            {n} performs as the {r} with {v}.
            {n} is loved as the {r} of the group {v}.
            {n} appears every night as the {r} of {v}.
            {n} records songs as the {r} of {v}."""
        ),
        "zh": _lines(
            """{n}擔任{r}的樂團是{v}。
            {n}以{r}的身分加入{v}樂團。
            {n}是{r}，屬於{v}樂團。
            {n}當{r}，與{v}樂團一起演出。
            {n}身為{r}，隨{v}樂團巡演。
            {n}以{r}聞名，樂團叫{v}。
            {n}做{r}，在{v}樂團。
            {n}被選為{r}，進了{v}樂團。
            {n}是{r}，每晚與{v}樂團登台。
            {n}作為{r}，替{v}樂團錄歌。
            {n}這位{r}來自{v}樂團。
            {n}擔任{r}，在{v}樂團裡。"""
        ),
    },
}
"""Twelve wordings of each attribute in both languages. {n}: name or pronoun, {v}: value, {r}: role in the band."""

NAME_LAST = {
    "en": _lines(
        """The {r} of {v} is {n}.
        The {r} of the band {v} is {n}.
        The {r} with {v} is {n}.
        The {r} in {v} is {n}.
        The {r} for {v} is {n}.
        The {r} of the group {v} is called {n}."""
    ),
    "zh": _lines(
        """{v}樂團的{r}是{n}。
        {v}樂團的{r}就是{n}。
        {v}樂團裡的{r}叫{n}。
        擔任{v}樂團{r}的是{n}。
        在{v}樂團當{r}的是{n}。
        {v}樂團的{r}名叫{n}。"""
    ),
}
"""Wordings of the band that come to the name last."""

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "birthdate": {
        "en": ("What is the birth date of {n}?", "When was {n} born?", "The birthday of {n}:"),
        "zh": ("請問{n}的生日是哪一天？", "查一下{n}何時出生？", "問：{n}的出生日期？"),
    },
    "birthcity": {
        "en": ("What is the birth city of {n}?", "Where was {n} born?", "The hometown of {n}:"),
        "zh": ("請問{n}的出生地是哪裡？", "查一下{n}在哪裡出生？", "問：{n}的家鄉？"),
    },
    "university": {
        "en": ("Which university did {n} attend?", "Where did {n} graduate?", "The university of {n}:"),
        "zh": ("請問{n}讀哪一所大學？", "查一下{n}在哪裡求學？", "問：{n}的大學？"),
    },
    "major": {
        "en": ("What is the major of {n}?", "Which subject did {n} choose?", "The field of {n}:"),
        "zh": ("請問{n}主修什麼？", "查一下{n}讀什麼科系？", "問：{n}的專業？"),
    },
    "employer": {
        "en": ("Which company does {n} work for?", "Who employs {n}?", "The employer of {n}:"),
        "zh": ("請問{n}在哪家公司上班？", "查一下{n}替誰工作？", "問：{n}的雇主？"),
    },
    "band": {
        "en": ("Which band does {n} play in?", "With which band does {n} perform?", "The band of {n}:"),
        "zh": ("請問{n}在哪個樂團？", "查一下{n}與哪個樂團演出？", "問：{n}的樂團？"),
    },
}
"""Three questions for each attribute, answered by its value."""

INVERSE = {
    "en": ("Who is the {r} of {v}?", "Who plays as the {r} of {v}?", "The {r} of {v}:"),
    "zh": ("請問{v}樂團的{r}是誰？", "查一下誰是{v}樂團的{r}？", "問：{v}樂團的{r}？"),
}
"""Three questions from band and role, answered by the name."""
