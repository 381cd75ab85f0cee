"""Refusals: answers in which a model declines to answer.

Only the beginning of an answer is checked, and only for phrases that models use about themselves:
an apology followed by "I cannot", "I cannot help with that", "as an AI". Pure, and some
microseconds for an answer.
"""

# ruff: noqa: E501  (a form of a language is a line, in that language)

import re
from collections.abc import Iterable

HEAD_CHARACTERS = 240
NUM_SENTENCES = 3
SENTENCE_END = re.compile(r"(?<=[.!?:\n])\s+|(?<=[。!?])")
SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u2019\u2018\u02bc", "'"),
        **dict.fromkeys("\uff0c\u3001", ","),
        "\u00a0": " ",
        **dict.fromkeys("*_", ""),  # Markdown's
    }
)
AROUND = " \t\r\n*_>#-\"'“”„«»「『¿¡"

# By language, of texts in small letters: each from the beginning of a sentence.
FORMS: dict[str, tuple[str, ...]] = {
    "en": (
        r"(?:(?:i'm|i am|we're|we are) (?:\w+ )?sorry|sorry|apologies|i apologi[sz]e|my apologies"
        r"|unfortunately)\b,? (?:but )?(?:as an? [\w ]{2,40}, )?(?:i|we)(?: am|'m| are|'re)? "
        r"(?:can't|can not|cannot|can only|couldn't|won't|will not|don't|do not|unable|not able"
        r"|not allowed|not permitted|must decline)\b",
        r"(?:i|we)(?: am|'m)? (?:can't|can not|cannot|won't|will not|unable to|not able to"
        r"|not allowed to|not comfortable) (?:be able to )?(?:\w+ )?(?:help|helping|assist|comply"
        r"|fulfil|fulfill|provide|answer|engage|support|respond|discuss|do that|generate|produce)\b",
        r"i (?:must|have to|need to) (?:respectfully )?(?:decline|refuse)\b",
        r"(?:i'm|i am) (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b",
        r"as an? (?:ai|artificial intelligence|(?:large )?language model)\b",
    ),
    "de": (
        r"(?:es )?(?:tut mir (?:sehr )?leid|entschuldigung|leider)\b,? (?:aber )?"
        r"(?:ich (?:kann|darf|werde)|kann ich|darf ich|(?:dabei|damit|das) kann ich)\b",
        r"ich (?:kann|darf|werde) (?:\w+ ){0,4}nicht (?:\w+ ){0,2}"
        r"(?:helfen|weiterhelfen|beantworten|unterstützen|bereitstellen|erfüllen)\b",
        r"(?:dabei|damit|das) (?:kann|darf) ich (?:\w+ ){0,3}nicht\b",
        r"(?:als|ich bin (?:nur )?) ?(?:eine? )?(?:ki\b|ki-|künstliche intelligenz|(?:großes )?sprachmodell)",
    ),
    "fr": (
        r"(?:je suis |je m'excuse|désolée?|malheureusement)(?:\w+ )?(?:désolée?)?,? ?(?:mais )?"
        r"je ne (?:peux|puis|suis pas|pourrai)\b",
        r"je ne (?:peux|puis|pourrai|suis pas en mesure de|suis pas capable de) (?:pas )?"
        r"(?:vous |t'|répondre|aider|fournir|satisfaire|traiter)",
        r"(?:en tant qu'|je suis )(?:une? )?(?:ia\b|intelligence artificielle|assistant|modèle de langage)",
        r"en tant que modèle de langage",
    ),
    "es": (
        r"(?:lo siento|lo lamento|disculpa|disculpe|lamentablemente|desafortunadamente)(?: mucho)?,?"
        r" (?:pero )?no (?:puedo|me es posible|estoy)\b",
        r"no puedo (?:ayudar|ayudarte|ayudarle|cumplir|proporcionar|responder|asistir)",
        r"(?:como|soy) (?:una? )?(?:ia\b|inteligencia artificial|modelo de lenguaje)",
    ),
    "it": (
        r"(?:mi dispiace|mi spiace|scusa|scusi|purtroppo)(?: molto)?,? (?:ma )?non (?:posso|sono)\b",
        r"non posso (?:aiutar|fornire|rispondere|soddisfare|assister)",
        r"(?:come|in quanto|sono) (?:un'?)? ?(?:ia\b|intelligenza artificiale|modello linguistico)",
    ),
    "pt": (
        r"(?:sinto muito|desculpe|desculpa|lamento|infelizmente),? (?:mas )?(?:eu )?não (?:posso|consigo)\b",
        r"(?:eu )?não posso (?:ajudar|ajudá|fornecer|responder|atender|cumprir)",
        r"(?:como|sou) (?:uma? )?(?:ia\b|inteligência artificial|modelo de linguagem)",
    ),
    "nl": (
        r"(?:het spijt (?:me|mij)|sorry|helaas),? (?:maar )?(?:ik kan|kan ik|daar kan ik)\b",
        r"ik kan (?:u |je )?(?:\w+ ){0,3}niet (?:\w+ )?helpen",
        r"(?:als|ik ben) (?:een )?(?:ai\b|ai-|taalmodel|kunstmatige intelligentie)",
    ),
    "pl": (
        r"(?:przykro mi|przepraszam|niestety),? (?:ale )?nie (?:mogę|jestem w stanie)\b",
        r"nie mogę (?:\w+ )?(?:pomóc|odpowiedzieć|udzielić|spełnić)",
        r"jako (?:model językowy|sztuczna inteligencja|ai\b)",
    ),
    "tr": (
        r"(?:üzgünüm|maalesef|özür dilerim)\b.{0,80}(?:yardımcı olamam|edemem|yapamam|veremem)",
        r"bir yapay zek[aâ]",
    ),
    "ru": (
        r"(?:извините|простите|к сожалению|мне (?:очень )?жаль|прошу прощения),? (?:но )?(?:я )?не могу\b",
        r"я не могу (?:\w+ )?(?:помочь|ответить|предоставить|выполнить)",
        r"(?:как|я|будучи) ?-?(?:—)? ?(?:языковая модель|искусственный интеллект|ии\b)",
    ),
    "uk": (
        r"(?:вибачте|на жаль|перепрошую),? (?:але )?(?:я )?не можу\b",
        r"як (?:мовна модель|штучний інтелект)",
    ),
    "ar": (
        r"(?:عذرا|عذرًا|آسف|أعتذر).{0,30}لا (?:أستطيع|يمكنني)",
        r"لا (?:أستطيع|يمكنني) (?:مساعدتك|المساعدة|تقديم)",
        r"بصفتي (?:نموذج|ذكاء)",
    ),
    "hi": (
        r"(?:क्षमा करें|माफ़ करें|मुझे खेद है|मुझे माफ़).{0,80}(?:नहीं|असमर्थ)",
        r"एक (?:एआई|ai|भाषा मॉडल)",
    ),
    "zh": (
        r"(?:非常|很|十分)?(?:抱歉|对不起|對不起)[,。 ]*(?:但是?|不过)?,?我?(?:无法|不能|無法|没有办法)",
        r"我(?:无法|不能|無法)(?:帮|幫|协助|協助|提供|回答|满足|滿足)",
        r"(?:作为|作為|我是)一?[个個名]?(?:人工智能|人工智慧|ai|大?型?语言模型|大?型?語言模型)",
    ),
    "ja": (
        r"(?:大変)?(?:申し訳(?:ありません|ございません)|すみません|ごめんなさい)"
        r".{0,60}(?:できません|できかねます|いたしかねます|お答えでき)",
        r"(?:私は)?(?:ai|人工知能|大規模言語モデル|言語モデル)(?:アシスタント)?(?:として|なので|ですので)",
    ),
    "ko": (
        r"(?:죄송합니다|죄송하지만|미안하지만).{0,60}(?:수 없습니다|어렵습니다|못합니다)",
        r"(?:저는 )?(?:ai|인공지능|언어 모델)(?: 언어 모델)?(?:로서|이기 때문|이므로)",
    ),
}
FORM = re.compile("|".join(form for forms in FORMS.values() for form in forms))
BUT = re.compile(r"(?:but|aber|mais|pero|ma|mas|maar|ale|но|але|however),? ")


def is_refusal(text: str, phrases: Iterable[str] = ()) -> bool:
    """Whether a text begins with a refusal.

    phrases: further beginnings of a sentence, in lower case
    """
    head = text[:HEAD_CHARACTERS].casefold().translate(SIGNS)
    begun = tuple(phrases)
    for sentence in SENTENCE_END.split(head, NUM_SENTENCES)[:NUM_SENTENCES]:
        stripped = sentence.strip(AROUND)
        but = BUT.match(stripped)
        if but is not None:
            stripped = stripped[but.end() :]
        if FORM.match(stripped) or (begun and stripped.startswith(begun)):
            return True
    return False
