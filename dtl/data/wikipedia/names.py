"""Names in the languages of the larger Wikipedias: namespaces of files and categories, templates, appendices.

A dump lists its namespaces, but neither their aliases (`Image:`, `Bild:`) nor its templates, so they are listed
here; files in any other language are recognised by the endings of their names.
"""

# ruff: noqa: RUF001  (letters of other scripts)
import re

_FILES = """
    file image media datei bild fichier archivo imagen immagine ficheiro arquivo imagem bestand afbeelding plik
    grafika файл изображение зображення ファイル 画像 档案 檔案 文件 图像 圖像 파일 그림 fil tiedosto kuva soubor
    súbor obrázok fájl kép dosya resim fitxer imatge fișier imagine αρχείο εικόνα датотека слика slika datoteka картинка
    קובץ תמונה ملف صورة پرونده تصویر berkas gambar tập_tin hình चित्र ไฟล์ ภาพ dosiero fitxategi irudi skrá mynd
"""
_CATEGORIES = """
    category kategorie catégorie categoría categoria categorie kategoria категория категорія カテゴリ カテゴリー 分类
    分類 분류 kategori luokka kategória κατηγορία категорија kategorija קטגוריה تصنيف رده thể_loại श्रेणी หมวดหมู่
    kategorio flokkur катэгорыя kateqoriya
"""
_HOMONYMS = """
    disambig disamb disambiguation dab hndis geodis roaddis schooldis numberdis mathdab tndis begriffsklärung
    homonymie patronyme paronymie desambiguación desambiguacion disambigua desambiguação dp doorverwijspagina
    ujednoznacznienie неоднозначность многозначность список_однофамильцев багатозначність aimai 曖昧さ回避
    人名の曖昧さ回避
    消歧义 消歧義 消歧义页 동음이의 förgrening gren flertydig peker täsmennyssivu rozcestník rozlišovacia_stránka
    egyért anlam_ayrımı desambiguació dezambiguizare αποσαφήνιση пояснение вишезначна_одредница razdvojba פירושונים
    توضيح ابهام‌زدایی định_hướng แก้ความกำกวม apartigilo argipen
"""
_APPENDICES = """
    references reference notes footnotes citations sources bibliography external_links further_reading see_also
    notes_and_references references_and_notes works_cited other_websites related_pages einzelnachweise weblinks
    literatur siehe_auch quellen anmerkungen références notes_et_références liens_externes voir_aussi bibliographie
    articles_connexes annexes referencias enlaces_externos véase_también bibliografía note collegamenti_esterni
    voci_correlate bibliografia altri_progetti referências ligações_externas ver_também bronnen externe_links zie_ook
    referenties przypisy linki_zewnętrzne zobacz_też примечания ссылки литература см._также 脚注 出典 注釈 参考文献
    関連項目 外部リンク 参考资料 外部链接 参见 相关条目 參考資料 外部連結 각주 외부_링크 같이_보기 referenser
    externa_länkar se_även källor viitteet lähteet aiheesta_muualla odkazy externí_odkazy literatura jegyzetek források
    kaynakça dış_bağlantılar ayrıca_bakınız примітки посилання джерела
"""


def _any_of(names: str) -> str:
    return "|".join(re.escape(name).replace("_", "[ _]") for name in names.split())


APPENDICES = frozenset(name.replace("_", " ") for name in _APPENDICES.split())
FILES_AND_CATEGORIES = f"{_any_of(_FILES)}|{_any_of(_CATEGORIES)}"
_DISAMBIGUATION = re.compile(  # begins with a string, so that re finds it fast
    rf"\{{\{{\s*(?:[\w -]{{1,40}}[ _]disambiguation|{_any_of(_HOMONYMS)})(?:[ _-]?(?:page|cleanup))?\s*(?:\||\}}\}})",
    re.IGNORECASE,
)
_SWITCH = re.compile(r"__(?:DISAMBIG|BEGRIFFSKLÄRUNG)__", re.IGNORECASE)
_REDIRECT = re.compile(r"\s*[#＃][^\W\d_][\w -]{0,40}:?\s*\[\[[^\[\]\n]+\]\]")  # `#WEITERLEITUNG [[...]]` too


def is_disambiguation(title: str, wikitext: str) -> bool:
    """Return True for a disambiguation page."""
    if title.endswith("(disambiguation)") or _DISAMBIGUATION.search(wikitext):
        return True
    return "__" in wikitext and _SWITCH.search(wikitext) is not None


def is_redirect(wikitext: str) -> bool:
    """Return True for a redirect, in any language."""
    return _REDIRECT.match(wikitext) is not None
