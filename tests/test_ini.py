from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.ini import ConfigError, Problem, Problems, read_sections
from proxyd.values import number, one_of, yes_no


def read(text):
    """The sections of a text by header, and the problems."""
    problems = Problems("x.ini")
    return {section.header: section for section in read_sections(text, problems)}, problems


class ProblemTests(SynchronousTestCase):
    def test_place(self):
        """A problem tells its file, line, section and option, as far as it has them."""
        self.assertEqual(str(Problem("a.ini", 7, "rule:x", "ports", "bad; fix")), "a.ini:7: [rule:x] ports: bad; fix")
        self.assertEqual(str(Problem("a.ini", 7, "rule:x", None, "bad; fix")), "a.ini:7: [rule:x] bad; fix")
        self.assertEqual(str(Problem("a.ini", 0, None, None, "bad; fix")), "a.ini: bad; fix")

    def test_error(self):
        """An error is one line for each problem, in the order of the file."""
        error = ConfigError([Problem("a.ini", 9, None, None, "late"), Problem("a.ini", 2, "x", None, "early")])
        self.assertEqual(str(error), "a.ini:2: [x] early\na.ini:9: late")
        self.assertEqual([problem.line for problem in error.problems], [2, 9])

    def test_check(self):
        """Nothing is raised while nothing is wrong."""
        problems = Problems("a.ini")
        problems.check()
        problems.add(1, "bad")
        self.assertRaises(ConfigError, problems.check)


class SyntaxTests(SynchronousTestCase):
    def problems(self, text):
        return str(ConfigError(read(text)[1].found)).split("\n")

    def test_lines(self):
        """Sections and options know their lines, whatever comments, blank and continued lines are between them."""
        text = "# head\n\n[a]\n; c\nx = 1\n\ny =\n  2\n  # in between\n  3\n[b:c]\r\nx = 4\n[last]\n"
        sections, problems = read(text)
        self.assertEqual(
            {header: section.line for header, section in sections.items()}, {"a": 3, "b:c": 11, "last": 13}
        )
        for header, option in (("a", "x"), ("a", "y"), ("b:c", "x")):
            sections[header].problem("here", option)
        self.assertEqual([problem.line for problem in problems.found], [5, 7, 12])

    def test_words_keep_their_lines(self):
        """A problem with one word of a list is in the line of that word, also if another word contains it."""
        sections, problems = read("[a]\nlist = one,\n  # no two\n  twofold\n\n  two, a=b\n")
        for word in ("one", "two", "a=b"):
            sections["a"].problem("here", "list", word)
        self.assertEqual([problem.line for problem in problems.found], [2, 6, 2])

    def test_header_parts(self):
        """A header has a kind, and a name behind the first colon."""
        sections, _ = read("[rule:a:b]\n[users]\n")
        self.assertEqual(
            [(section.kind, section.name) for section in sections.values()], [("rule", "a:b"), ("users", "")]
        )

    def test_no_section_gives_defaults(self):
        """[DEFAULT] is a section like others, and names keep their case."""
        sections, _ = read("[DEFAULT]\nX = 1\n[a]\nx = %(X)s\n")
        self.assertFalse("X" in sections["a"])
        self.assertEqual(sections["a"].take("x", str, None), "%(X)s")

    def test_duplicates(self):
        """Every duplicate section and option is told with its line, and what comes behind is read."""
        text = "[a]\nx = 1\nx =\n  2\ny = 1\n[a]\nz = 1\n[b]\nq = 1\n[a]\n[c]\nx = 1\n\n x = 3\nx = 2\n"
        self.assertEqual(
            self.problems(text),
            [
                "x.ini:3: [a] x: it is there already in this section; remove one of both",
                "x.ini:6: [a] it is there already, in line 1; rename it, or join both",
                "x.ini:10: [a] it is there already, in line 1; rename it, or join both",
                "x.ini:15: [c] x: it is there already in this section; remove one of both",
            ],
        )
        sections, _ = read(text)
        self.assertEqual(sections["a"].take("x", str, None), "1")
        self.assertEqual(sections["c"].line, 11)
        self.assertFalse("z" in sections["a"])

    def test_nonsense(self):
        """Lines that are nothing, and options in front of the first section, are told all at once."""
        text = "x = 1\ny\n[a]\nnonsense\n= 3\nx = 1\n[b] # comment\nmore nonsense\n"
        no_line = "it is no section, option or comment; write [section] or option = value"
        self.assertEqual(
            self.problems(text),
            [
                "x.ini:1: it stands before the first section; write [proxyd] or another header above it",
                f"x.ini:4: {no_line}",
                f"x.ini:5: {no_line}",
                f"x.ini:7: {no_line}",
                f"x.ini:8: {no_line}",
            ],
        )

    def test_nothing(self):
        """An empty file has no sections and nothing wrong with its syntax."""
        sections, problems = read("")
        self.assertEqual((sections, problems.found), ({}, []))

    @given(
        st.lists(st.sampled_from(["[a]", "[b:c]", "x = 1", "y = 2", " z", "=", "nonsense", "", "# c", "[", "\u2028"]))
    )
    def test_any_lines(self, lines):
        """Whatever the lines, each problem has a line of the file, and each section the line of its header."""
        sections, problems = read("\n".join(lines))
        self.assertTrue(all(1 <= problem.line <= len(lines) for problem in problems.found))
        self.assertTrue(all(lines[section.line - 1] == f"[{header}]" for header, section in sections.items()))


class SectionTests(SynchronousTestCase):
    def section(self, body):
        sections, self.problems = read(f"[a]\n{body}\n")
        return sections["a"]

    def said(self):
        return list(map(str, self.problems.found))

    def test_take(self):
        """An option gives its value, or the default where it is not there or wrong."""
        section = self.section("n = 5\nbad = x")
        self.assertEqual(section.take("n", number, 1), 5)
        self.assertEqual(section.take("none", number, 1), 1)
        self.assertEqual(self.said(), [])
        self.assertEqual(section.take("bad", number, 1), 1)
        self.assertEqual(self.said(), ['x.ini:3: [a] bad: "x" is not a number; write digits only'])

    def test_one_line(self):
        """An option that takes one value takes one line: an indented next option is not swallowed."""
        section = self.section("n = 5\n m = 6")
        self.assertEqual(section.take("n", number, 1), 1)
        self.assertEqual(
            self.said(),
            ["x.ini:2: [a] n: it takes one line; a line that begins with a blank goes on with the one above"],
        )

    def test_inline_comment(self):
        """A comment behind a value is part of it, and the refusal says so."""
        section = self.section("b = yes # really\nc = forward # and\n")
        section.take("b", yes_no, False)
        section.take_list("c", one_of(("forward",), "protocol"))
        self.assertEqual(
            self.said()[0],
            'x.ini:2: [a] b: "yes # really" is neither yes nor no; write one of them; '
            "comments stand on lines of their own",
        )
        self.assertEqual(len(self.said()), 3)
        self.assertIn("comments stand on lines of their own", self.said()[1])

    def test_take_list(self):
        """A list is separated by blanks, commas or new lines; each wrong word is told, with its line."""
        section = self.section("n = 1, 2\n  3,x\n  y 4 ,")
        self.assertEqual(section.take_list("n", number), (1, 2, 3, 4))
        self.assertEqual([problem.line for problem in self.problems.found], [3, 4])
        self.assertEqual(section.take_list("none", number), ())

    def test_empty_list(self):
        """A list without a word is refused: it could mean everything."""
        section = self.section("n = ,")
        self.assertEqual(section.take_list("n", number), ())
        self.assertEqual(self.said(), ["x.ini:2: [a] n: it is empty; list something, or remove the option"])

    def test_require(self):
        """A missing option is told in the line of the section."""
        section = self.section("n = 1")
        section.require("n", "2")
        section.require("m", "3")
        self.assertEqual(self.said(), ["x.ini:1: [a] m: it is missing; add m = 3"])

    def test_finish(self):
        """Options that nobody asked for are refused, with the one that may be meant."""
        section = self.section("prots = 1\nxyz = 2\nN = 3\nn = 4")
        section.take("n", number, 0)
        section.take_list("ports", number)
        section.finish()
        self.assertEqual(
            sorted(self.said()),
            [
                'x.ini:2: [a] prots: there is no such option; did you mean "ports"?',
                "x.ini:3: [a] xyz: there is no such option; known: n, ports",
                'x.ini:4: [a] N: there is no such option; did you mean "n"?',
            ],
        )
