package page

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	t.Parallel()
	text := "# Title\n\n## First\n<!-- test: cluster servers=3 -->\nText `$ no`.\n```console\nserver-1# skiff a --b # 1.5 s\nout\n\nmore\nlaptop$ false\nskiff: no\n```\n" +
		"```yaml\nserver-1# not a command\n```\n<!-- a remark -->\n## Second\n```yaml a.yaml\nkind: Pod\n```\n```console\nagent-1# c\n```\n"
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Line: 4, Section: "First", Directive: []string{"cluster", "servers=3"}},
		{Line: 7, Section: "First", Host: "server-1", Command: "skiff a --b", Took: 1500 * time.Millisecond, Output: []string{"out", "", "more"}},
		{Line: 11, Section: "First", Host: "laptop", Command: "false", Output: []string{"skiff: no"}, Fails: true},
		{Line: 19, Section: "Second", Host: "agent-1", File: "a.yaml", Content: "kind: Pod\n"},
		{Line: 23, Section: "Second", Host: "agent-1", Command: "c"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for what, text := range map[string]string{
		"output without a command": "```console\nout\n```\n", "not closed": "```console\na# b\n",
		"stands alone": "text <!-- test: x -->\n", "nothing else": "```console x\n```\n",
		"no command follows": "```yaml a.yaml\n```\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%q: %v, want %q", text, err, what)
		}
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		shown, output string
		ok            bool
	}{
		{"", "", true},
		{"", "x\n", false},
		{"x", "", false},
		{"saved to /backup/a", "saved to /backup/a\n", true},
		{"saved to /backup/a", "saved to /backup/b\n", false},
		{"HASH   KEYS\n1a2b3c4d   120", "HASH       KEYS\nffee0011   7\n\n", true},
		{"after 350ms", "after 1.25s\n", true},
		{"after 5m0s, 3d old", "after 1h2m3s, 2m old\n", true},
		{"1.2 MiB of 10 GiB", "900 KiB of 3.5 GiB", true},
		{"1.2 MiB", "1.2 seconds", false},
		{"98.3Ki", "1.1Mi", true},
		{"+------+-----+\n| KEYS | 150 |", "+------+------+\n| KEYS | 1500 |", true},
		{"cluster W7A5MYL6", "cluster ABCDEFGH", true},
		{"hash 12345678", "hash fe345678", true},
		{"cluster AW7AHB4HZ26I3GZ27UZJ2N7R6O", "cluster ZZZZHB4HZ26I3GZ27UZJ2N7R6O", true},
		{"server-1 alive", "server-1 dead", false},
		{"server-1 alive", "server-2 alive", false},
		{"skiff 0.2.0", "skiff 0.1.0", false},
		{"at 192.0.2.11:6443", "at 192.0.2.12:6443", false},
		{"120 keys, 1.5 of them", "7 keys, 2.25 of them", true},
		{"a\n…\nz", "a\nb\nc\nz", true},
		{"a\n…\nz", "a\nz", true},
		{"a\n…\nz", "a\nb", false},
		{"token …", "token K10::abc", true},
		{"token … end", "token K10::abc", false},
		{"a (b) [c]* $", "a (b) [c]* $", true},
		{"2026-11-21T19:37:05Z", "2031-01-02T00:00:00Z", true},
		{"skiff-AW7AHB4H-20261121T193705Z-r120.snap", "skiff-BB7AHB4H-20270101T000000Z-r7.snap", true},
	} {
		if err := Match(strings.Split(tc.shown, "\n"), tc.output); (err == nil) != tc.ok {
			t.Errorf("shown %q, printed %q: %v", tc.shown, tc.output, err)
		}
	}
}
