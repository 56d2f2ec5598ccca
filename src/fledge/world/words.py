"""Real words with their translations (flowers and trades, the values of two relations), and readers of word lists."""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text between spaces."""
    return tuple(text.split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Words in two parts: 隻/狗 becomes (隻, 狗)."""
    return tuple((a, b) for a, b in (word.split("/") for word in text.split()))


def _table(text: str) -> tuple[tuple[str, str], ...]:
    """Turns "rose/玫瑰, lily/百合" into pairs (English, Chinese)."""
    rows = (row.strip().split("/") for row in text.replace("\n", " ").split(","))
    return tuple((en, zh) for en, zh in rows)


FLOWERS = _table(
    """rose/玫瑰, lily/百合, lotus/蓮花, orchid/蘭花, tulip/鬱金香, sunflower/向日葵, daisy/雛菊, plum blossom/梅花,
    cherry blossom/櫻花, peach blossom/桃花, peony/牡丹, iris/鳶尾花, jasmine/茉莉花, violet/紫羅蘭, camellia/山茶花,
    azalea/杜鵑花, chrysanthemum/菊花, carnation/康乃馨, daffodil/水仙花, hibiscus/木槿花, lavender/薰衣草, magnolia/玉蘭,
    dandelion/蒲公英, gardenia/梔子花, begonia/秋海棠, hydrangea/繡球花, apple blossom/蘋果花, pear blossom/梨花,
    orange blossom/橙花, buttercup/金鳳花, bluebell/藍鈴花, snowdrop/雪花蓮, honeysuckle/金銀花, morning glory/牽牛花,
    poinsettia/聖誕紅, wisteria/紫藤, marigold/萬壽菊, geranium/天竺葵, clover/三葉草, forget-me-not/勿忘草"""
)
"""40 flowers."""

TRADES = _table(
    """baker/麵包師, farmer/農夫, fisherman/漁夫, carpenter/木匠, tailor/裁縫, potter/陶匠, painter/畫家, singer/歌手,
    dancer/舞者, doctor/醫生, nurse/護士, teacher/老師, judge/法官, lawyer/律師, soldier/軍人, sailor/水手,
    pilot/飛行員, driver/司機, cook/廚師, waiter/服務生, barber/理髮師, gardener/園丁, miner/礦工, plumber/水管工,
    clerk/店員, banker/銀行家, writer/作家, poet/詩人, actor/演員, librarian/圖書館員, printer/印刷工, blacksmith/鐵匠,
    watchmaker/鐘錶匠, beekeeper/養蜂人, shepherd/牧羊人, astronomer/天文學家, dentist/牙醫, engineer/工程師,
    translator/翻譯員, architect/建築師"""
)
"""40 trades."""
