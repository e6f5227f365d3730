# Splits rows of messages by question, so that no held-out question is trained on: the rows of every ONE_IN-th distinct
# question go to HELDOUT, all others to TRAIN. Rows that ask what a row of the file WITHOUT asks go nowhere.
function question(row) {
    row = tolower(substr(row, 1, index(row, "\"role\": \"assistant\"")))
    gsub(/[^a-z0-9]/, "", row)
    return row
}
BEGIN {
    while (WITHOUT != "" && (getline row < WITHOUT) > 0) without[question(row)] = 1
}
{
    q = question($0)
    if (q in without) next
    if (!(q in held)) held[q] = (++questions % ONE_IN == 0)
    print > (held[q] ? HELDOUT : TRAIN)
}
