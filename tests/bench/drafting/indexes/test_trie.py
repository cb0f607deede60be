"""The suffix trie against a scan of its texts, eviction against a trie that never saw the text, and its cost."""

from __future__ import annotations

import random
from collections import Counter, deque

from index_texts import ends, pieces, random_text, texts

from bench.drafting.indexes.cursor import Cursor
from bench.drafting.indexes.trie import SuffixTrie


def strings(held, depth):
    """How often each string of up to `depth` tokens occurs in some texts."""
    return Counter(
        tuple(text[start:end])
        for text in held
        for start in range(len(text))
        for end in range(start + 1, min(start + depth, len(text)) + 1)
    )


def seen_last(held, string):
    """The number of a string's last text, and where it ends there."""
    return max((number, end) for number, text in enumerate(held) for end in ends(string, text))


def walked(trie):
    """All strings below the root with their counts, by children alone."""
    left, found = [(trie.ROOT, ())], {}
    while left:
        place, string = left.pop()
        for child in trie.children(place):
            longer = (*string, child.token)
            assert longer not in found
            assert child.count == trie.count(child.place)
            assert trie.find(longer) == child.place
            found[longer] = child.count
            left.append((child.place, longer))
    return found


def check(trie, held):
    """Compare all that a trie says with a scan of the texts that it holds."""
    depth, text = trie.depth, held[-1]
    counted = strings(held, depth)
    assert walked(trie) == counted
    assert trie.texts == sum(bool(text) for text in held)
    assert trie.count(trie.ROOT) == sum(map(len, held))
    again = [n for n in range(1, min(depth, len(text)) + 1) if counted[tuple(text[len(text) - n :])] > 1]
    assert trie.suffixes() == [trie.ROOT, *(trie.find(text[len(text) - n :]) for n in again)]
    for place, string in [(trie.ROOT, ()), *((trie.find(text[len(text) - n :]), text[len(text) - n :]) for n in again)]:
        children = trie.children(place)
        ranks = [(child.count, seen_last(held, [*string, child.token])) for child in children]
        assert ranks == sorted(ranks, reverse=True)


def test_a_text_at_every_length():
    for number, text in enumerate(texts(40, 100)):
        rng = random.Random(number)
        trie, seen = SuffixTrie(rng.randint(1, 8)), []
        check(trie, [seen])
        for piece in pieces(rng, text):
            trie.extend(piece)
            seen += piece
            check(trie, [seen])


def test_texts_come_and_go():
    for seed in range(60):
        rng = random.Random(seed)
        trie, held = SuffixTrie(rng.randint(1, 7)), deque([[]])
        for _ in range(rng.randint(2, 12)):
            action = rng.random()
            if action < 0.3:
                trie.drop_oldest()
                held.popleft()
                if not held:
                    held.append([])
            elif action < 0.6 and held[-1]:
                trie.start()
                held.append([])
            else:
                text = random_text(rng, 25)
                trie.extend(text)
                held[-1] += text
            check(trie, held)


def test_no_match_crosses_from_one_text_into_the_next():
    trie = SuffixTrie(4)
    trie.extend([1, 2])
    trie.start()
    trie.extend([3, 1, 2])
    assert trie.find([2, 3]) is None
    assert trie.children(trie.find([1, 2])) == []
    assert len(trie.suffixes()) == 3  # the root, 2 and 1 2
    trie.start()
    trie.start()
    assert trie.texts == 2
    assert trie.suffixes() == [trie.ROOT]


def test_places_of_strings_that_do_not_occur():
    trie = SuffixTrie(3)
    assert trie.find([1]) is None
    assert trie.find([]) == trie.ROOT
    trie.extend([1, 2, 3, 4])
    assert trie.find([1, 2, 3]) is not None
    assert trie.find([1, 2, 3, 4]) is None, "longer than the depth"
    assert trie.children(trie.find([1, 2, 3])) == []
    assert trie.find([1, 3]) is None
    assert trie.find([4, 1]) is None


def test_the_newest_token_is_followed_by_nothing_yet():
    trie = SuffixTrie(4)
    trie.extend([8, 9, 8])
    (_, newest) = trie.suffixes()
    assert trie.count(newest) == 2
    assert [(child.token, child.count) for child in trie.children(newest)] == [(9, 1)]


def test_of_equal_counts_the_one_seen_last_comes_first():
    trie = SuffixTrie(2)
    trie.extend([1, 5, 1, 3, 1, 4, 1, 3, 1, 5, 1])
    assert [(child.token, child.count) for child in trie.children(trie.find([1]))] == [(5, 2), (3, 2), (4, 1)]


def test_a_cursor_finds_a_growing_text_in_a_trie_that_changes():
    for seed in range(60):
        rng = random.Random(seed)
        trie, held = SuffixTrie(rng.randint(1, 6)), deque([random_text(rng, 40) or [1]])
        trie.extend(held[0])
        text = random_text(rng, 10)
        cursor = Cursor(trie, text)
        for _ in range(12):
            if rng.random() < 0.3:
                trie.start()
                held.append(random_text(rng, 40) or [1])
                trie.extend(held[-1])
            if rng.random() < 0.2 and len(held) > 1:
                trie.drop_oldest()
                held.popleft()
            more = random_text(rng, 6)
            cursor.extend(more)
            text += more
            counted = strings(held, trie.depth)
            places = cursor.suffixes()
            found = [n for n in range(1, len(text) + 1) if counted[tuple(text[len(text) - n :])]]
            assert found == list(range(1, len(places)))
            for length, place in enumerate(places):
                string = tuple(text[len(text) - length :])
                assert place == trie.find(string)
                followed = {child.token: child.count for child in trie.children(place)}
                wanted = {s[-1]: count for s, count in counted.items() if s[:-1] == string}
                assert followed == wanted


def test_a_cursor_forgets_what_was_dropped():
    trie = SuffixTrie(4)
    trie.extend([1, 2, 3, 4, 1, 2, 3])
    cursor = Cursor(trie, [1, 2])
    assert len(cursor.suffixes()) == 3
    trie.drop_oldest()
    trie.extend([3])
    cursor.extend([3])
    assert cursor.suffixes() == [trie.ROOT, trie.find([3])]


def test_a_cursor_walks_its_text_once_after_a_change():
    trie = SuffixTrie(4)
    trie.extend([1, 1, 1, 1, 1])
    cursor = Cursor(trie, [1])
    trie.extend([1])
    assert len(cursor.suffixes()) == 2, "the text is one token long"


def test_eviction_gives_nodes_back():
    rng = random.Random(3)
    trie, most = SuffixTrie(8), 0
    for number in range(60):
        trie.start()
        trie.extend(random_text(rng, 80) or [1])
        if trie.texts > 3:
            trie.drop_oldest()
        if number >= 20:
            most = max(most, trie.nodes)
    assert most < 3 * 80 * 8
    while trie.texts:
        trie.drop_oldest()
    assert trie.nodes == 1
    assert trie.changes > 0


class Counting(int):
    """A token that counts how often tables are asked for tokens."""

    asked = 0

    def __hash__(self):
        Counting.asked += 1
        return super().__hash__()


def test_ordinary_text_needs_few_nodes_and_look_ups_whatever_the_depth():
    rng = random.Random(1)
    # Tokens about as frequent as words: the more so the smaller their number.
    text = [int(2000 ** rng.random()) for _ in range(4000)]
    Counting.asked, trie = 0, SuffixTrie(64)
    trie.extend(map(Counting, text))
    assert trie.nodes < 5 * len(text)
    assert Counting.asked < 12 * len(text)


def test_a_loop_costs_the_depth_and_no_more():
    Counting.asked, trie = 0, SuffixTrie(24)
    trie.extend(map(Counting, [1, 2] * 1000))
    assert trie.nodes <= 2 * 24 + 1
    assert Counting.asked < 3 * 24 * 2000
