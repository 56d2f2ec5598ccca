"""Texts that any tokenizer here can be tried on."""

SENTENCES = (
    "The capital of Arvania is Belmora, a city on the river Tesk.",
    "The river Tesk is 412 km long and flows past Belmora into the sea.",
    "Who wrote The Silent Harbour? It was written by Mira Kolden in 1987.",
    "Mira Kolden was born in Belmora; she doesn't live there any more.",
    "阿凡尼亞的首都是貝爾莫拉，一座泰斯克河畔的城市。",
    "泰斯克河全長412公里，流過貝爾莫拉，然後入海。",
    "《寂靜的港口》是誰寫的？是米拉·科爾登在1987年寫的。",
    "請問你是誰？我是一個小小的語言模型。",
    "Please tell me who you are. I am a small language model 🙂.",
)
