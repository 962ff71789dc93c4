"""What helps with each message of an error, for docs/messages.md: by its own words, by a row here, or by its rule.

`cure(text)` raises for a message that says neither rule nor action and has no row, so that a new one needs a row.
"""

from __future__ import annotations

import re

# (how a message reads, what helps): the first row that fits is taken.
ROWS = (
    # Reading tables
    (r"is not a vocabulary|cannot read the vocabulary", "export the bundle again, or copy its vocabulary.parquet"),
    (r"^a crossed column cannot be crossed", "leave pairs of crossed columns out of features.pairs"),
    (r"^the crossed column … is there", "rename the column of the table that has the pair's name"),
    (r"^its vocabulary and", "a part was replaced: remove encoded data, which are made again; export a bundle again"),
    (r"^its (content|counts)|^the arrays of", "remove the folder that the line names; the data are encoded again"),
    (
        r"the encoded data are damaged",
        "remove the data's folder in runs/.cache, then `--resume`: the data are encoded again",
    ),
    (r"^no such file: …$", "check the path; a relative one starts where the command runs"),
    (r"holds no file$", "check the path and the pattern; hidden files and names that start with _ are left out"),
    (r"^data.above needs a numeric label", "use data.positive: the list of the values that count as 1"),
    (r"it is not a … file", "set data.format to what the file is, or copy the file again if it was cut off"),
    (r"it is not … text", "set data.encoding to what the file was written in, such as latin-1 or utf-16"),
    (
        r"^cannot read …: ?…+$",
        "check that the file exists, is whole and may be read; what the system says follows the colon",
    ),
    (r"^the column … is there already, so data.target", "name each column once, and rename a column of that name"),
    (r"^data.target_statistics must be of columns", "take the column out of data.target_statistics"),
    (r"^data.hash cannot hash", "take the column out of data.hash, and name the column whose ids it has"),
    (r"names no column of the table|^unknown column", "take a name from the list in the line"),
    (r"^no fields are left: every", "take a column out of data.drop"),
    (r"has no columns$", "check that the file is not empty, and data.separator"),
    (
        r"lacks columns that (train|the)|rows lack|lacks these columns|lacks columns of the",
        "add the columns to the table, under the names that train has",
    ),
    (r"which is not another feature$", "name a column that is read and is not this one"),
    (r"^format avazu needs", "keep Avazu's own column names, or set data.format: csv"),
    (r"^… has … columns, but … names", "give data.columns as many names as the file has columns"),
    (r"^a table without a header needs", "set data.columns, one name for each column in order"),
    (r"^split by: group and", "set both split.by: group and split.column, or neither"),
    (r"^split stratify goes with", "take stratify out, or set split.by: random with fractions"),
    (r"^split by time needs", "set data.time to the time column"),
    (r"^…, (as it is written|such as …)", "set data.time_format, such as %m/%d/%Y, or write all times one way"),
    (r"^the label … has … whole numbers", "say which by --set, as the line shows"),
    # Ranking
    (r"^a column of several values a row has counts", "leave it out of pairs and of scores by a model"),
    (r"^cannot read the ranking|is not a ranking", "write the ranking again by `autoembed rank --out`"),
    (r"^no pairs were ranked", "rank with pairs"),
    (r"^stability needs", "give 2 draws or more"),
    (r"^pairs need a label", "make the label one class against the rest (data.positive)"),
    (
        r"need a label of two classes",
        "make the label two classes (data.positive or data.above), or choose another score",
    ),
    (r"^label … has … values, but at most", "set data.above or data.positive in a search-space file, and rank that"),
    (r"^the table has no column but", "rank a table with features"),
    (r"^column … has no id|^ids must have … columns", "encode rows by the bundle's vocabulary: `Vocabulary.encode`"),
    (r"^the array must be|^… must (not call|return nothing)", "this is a fault of autoembed: report it"),
    # Spaces, methods, budgets
    (
        r"architecture …: …|is not a valid architecture",
        "write the file by `export`, or mend the key that the line names",
    ),
    (
        r"must be a plain architecture|clusters (or|and)|an ensemble must be|kept dims of|entries of a block"
        r"|block stops|bits must be 0 if",
        "mend the architecture, or take it from a bundle",
    ),
    (r"^embedding.narrow: projected needs", "leave granularity at dim, or narrow at kept"),
    (r"^the limit holds no such", "raise the limit"),
    (r"^the teacher …", "train the teacher on the study's data, with the same data section"),
    (r"^no column is left to learn", "check the label; `autoembed rank` tells why columns are left out"),
    (r"which column is the label|there is no label column", "give --label NAME"),
    (r"granularity: entry needs 2 bits", "set bits to 2 or more"),
    (r"granularity: entry needs choose_by", "set choose_by: weight"),
    (r"searches a single model, but got an ensemble", "put the stage with the ensemble last"),
    (r"^an ensemble has no clusters", "leave the clusters or the ensemble out"),
    (r"^stage …: …", "mend the option that the line names; those that exist follow"),
    (r"needs a budget of one", "raise the budget to the bytes that the line names"),
    (r"^set (keep or margin|lr or lr_factor)", "leave one of the two out"),
    (
        r"^AUC needs both|^group AUC needs|^NDCG needs",
        "score rows of both classes; `--set positive=[...]` says which values count as 1",
    ),
    (r"^macro AUC needs rows", "score rows of two classes or more"),
    (r"^there is no metric", "take a metric from the list in the line"),
    (r"is a module from outside", "import the module first: `autoembed --import MODULE ...`"),
    (r"^dlrm crosses pairs", "keep 2 fields or more, or choose another backbone"),
    (r"^there is no file … here", "give the path of a file, or the name of a shipped space"),
    (r"search space …: …|is not valid YAML|^…… is not", "mend the line that the message names"),
    (r"^its aliases make more", "write the values out, in place of YAML's aliases (*name)"),
    (
        r"or the dotted name of a module",
        "take a name from the list in the line, or name your module with `autoembed --import MODULE`",
    ),
    (r"must be searched before it can choose", "run the stage's search first"),
    (r"probabilities must be finite", "lower train.lr"),
    # Command line and Python
    (r"^module 'autoembed' has no", "check the name; api.md lists what the package has"),
    (r"^settings and separators go with", "put them into the search space's data section"),
    (r"^--trial and --pick choose", "leave the option out, or name the study's folder"),
    (r"^no longer following", "nothing is lost: use the command that the line gives"),
    (r"does not go with|goes with --data", "leave out the option"),
    (r"^compare needs two", "name two studies, or two tables"),
    (r"^rank needs SOURCE", "name a table, a search-space file or --model RUN"),
    (r"^there are no pairs to draw", "set features.pairs and search again, or draw without pairs"),
    (r"requires y to be passed", "pass y, or name its column by label=..."),
    (r"^cannot make the folder", "choose a folder that this user may write"),
    (r"^cannot load the", "install what the module imports, or mend it: what Python says follows the colon"),
    # Studies and clusters
    (r"^no space is left", "free space, then run the command that the line gives"),
    (
        r"^arm …, seed …: …|all … trials failed",
        "mend what follows the colon; each trial's folder keeps its traceback in error.txt",
    ),
    (r"has other columns or types than the rest", "rank on one machine, which reads parts that differ"),
    (
        r"driver's autoembed is not|^the server (has ended|is another)|only this user can open",
        "nothing: Ray starts its workers its own way, a little slower",
    ),
    (r"holds (a study already|no study)", "as the line says"),
    (r"go on with", "run the command that the line gives"),
    (r"^job … …: …|^the Ray job server", "what the server says follows the colon; `autoembed job logs` shows more"),
    (
        r"^no Ray job server answers",
        "start the head where ray[default] is installed, and give the dashboard's address (port 8265)",
    ),
    (
        r"^Ray Tune ended|^cannot start Ray|^cannot …: …|of the cluster cannot run",
        "mend what Ray says after the colon ([cluster.md](cluster.md)), then `--resume`",
    ),
    (r"^give at least one …", "give one of the two options"),
    (r"^the bundle … is of other data", "name a bundle of this study"),
    (
        r"is neither a|is not a run folder|not the folder of a study",
        "name the folder in runs/ that `autoembed ls` lists",
    ),
    (
        r"^no trial is done yet|has no trial that is done|has no leaderboard",
        "wait for the first trial, or go on by `--resume`",
    ),
    (r"^… needs a number, as in", "give the number, as the line shows"),
    (
        r"trial … cannot be read|has changed since the trial ended",
        "move the trial's folder away; `--resume` runs it again",
    ),
    (r"^cannot write to the MLflow store", "start the store or mend MLFLOW_TRACKING_URI, then `autoembed sync RUN`"),
    (
        r"^MLflow has not answered|^the MLflow server ended",
        "choose another --port, or see what the server says after the colon",
    ),
    # Bundles
    (r"exists and is not a bundle", "choose another place"),
    (
        r"^bundle … does not fit|breaks a rule|is not a bundle|is not valid JSON",
        "export the bundle again, or copy it again whole",
    ),
    (r"^bundle … has version", "install an autoembed that reads the version that the line names, or export again"),
    (r"^the C\+\+ compiler cannot", "use the format torch or onnx; what the compiler says follows the colon"),
    (
        r"the model must predict to",
        "score where processor and torch are as where it was trained, or train it again here",
    ),
    (r"^weights of clusters, of rows", "train from the start: leave out --warm"),
    (r"^more than … of the values are unknown", "refresh the model on newer rows, or raise --max-unknown"),
    (r"is no number of JSON", "send null where a value is missing"),
    (r"in the schema$|but the schema has", "export the bundle again: its files are of different models"),
    (r"^graph.json must use", "export with the autoembed that scores"),
)
# A message that names an action, and one that states a rule, help by themselves.
ACTS = re.compile(
    r"[:;(,.] ?(?:or |first |then |please )?(?:set|name|give|use|remove|build|pip install|write|copy|run|say|list"
    r"|choose|take|move|change|mount|unpack|drop|leave|lower|raise|see|put|add|try|wait|make|delete|free|rename|mend|train"
    r"|search|install|export|restore|bring|go on|clear|return|`autoembed)\b"
)
RULE = re.compile(r"\bmust\b")


def cure(text: str) -> str:
    """What helps with a message."""
    for pattern, what in ROWS:
        if re.search(pattern, text):
            return what
    if ACTS.search(text):
        return "as the line says"
    if RULE.search(text):
        return "give what the rule asks for"
    raise AssertionError(f"no cure for: {text}")


def unused(texts: list[str]) -> list[str]:
    """The rows that no message takes."""
    taken = {next((pattern for pattern, _ in ROWS if re.search(pattern, text)), "") for text in texts}
    return [pattern for pattern, _ in ROWS if pattern not in taken]
