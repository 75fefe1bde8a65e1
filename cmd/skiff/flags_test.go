package main

import (
	"slices"
	"strings"
	"testing"
)

func TestFlagsFirst(t *testing.T) {
	for line, want := range map[string]string{
		"snapshot save f --endpoints e --force":      "snapshot save --endpoints e --force -- f",
		"snapshot save --endpoints=e f -w json":      "snapshot save --endpoints=e -w json -- f",
		"snapshot save --force f":                    "snapshot save --force -- f",
		"snapshot diff a -o wide b":                  "snapshot diff -o wide -- a b",
		"snapshot save f --bogus x":                  "snapshot save --bogus -- f x",
		"snapshot save -- --force":                   "snapshot save -- --force",
		"snapshot save - --force":                    "snapshot save --force -- -",
		"snapshot save f --endpoints":                "snapshot save --endpoints -- f",
		"snapshot":                                   "snapshot",
		"snapshot --help":                            "snapshot --help",
		"nonsense f --force":                         "nonsense f --force",
		"kubectl get pods -n x":                      "kubectl get pods -n x",
		"dev exec n1 ls -l":                          "dev exec n1 ls -l",
		"status -o json":                             "status -o json",
		"--help":                                     "--help",
		"":                                           "",
		"snapshot sa --generate-bash-completion":     "snapshot sa --generate-bash-completion",
		"snapshot save f --generate-bash-completion": "snapshot save f --generate-bash-completion",
	} {
		got := flagsFirst(newApp(), append([]string{"skiff"}, strings.Fields(line)...))
		if !slices.Equal(got[1:], strings.Fields(want)) {
			t.Errorf("%q: got %q, want %q", line, got[1:], want)
		}
	}
}
