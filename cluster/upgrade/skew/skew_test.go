package skew

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for in, want := range map[string]string{"0.1.0": "0.1", "v1.22.3-dev+abc": "1.22", "0.1.0-dev": "0.1", "0.2.10": "0.2",
		"": "", "1.2": "", "1.2.": "", "1.x.0": "", "a.b.c": "", "1.2.x": "", "-1.2.3": "", "1.+2.3": "", "1.99999999.0": ""} {
		v, err := Parse(in)
		if (err == nil) != (want != "") || err == nil && v.String() != want {
			t.Errorf("%q: %s, %v", in, v, err)
		}
	}
}

func server(name, v string) Member { return Member{Name: name, Server: true, Version: v} }
func agent(name, v string) Member  { return Member{Name: name, Version: v} }

func TestJoin(t *testing.T) {
	for name, c := range map[string]struct {
		m      Member
		others []Member
		want   string // part of the refusal; empty: it works
	}{
		"same":                             {server("d", "1.5.0"), []Member{server("a", "1.5.0"), agent("n", "1.5.0")}, ""},
		"same, no version":                 {server("d", "test"), []Member{server("a", "test")}, ""},
		"patch":                            {agent("d", "1.5.9"), []Member{server("a", "1.5.0")}, ""},
		"server one ahead":                 {server("d", "1.6.0"), []Member{server("a", "1.5.0")}, ""},
		"server one behind":                {server("d", "1.4.0"), []Member{server("a", "1.5.0")}, ""},
		"server two ahead":                 {server("d", "1.7.0"), []Member{server("a", "1.6.0"), server("b", "1.5.0")}, "server b 1.5.0: servers may be one minor version apart"},
		"server two behind":                {server("d", "1.3.0"), []Member{server("a", "1.5.0")}, "install skiff 1.5.0 here"},
		"itself before":                    {server("a", "1.7.0"), []Member{server("a", "1.5.0")}, ""},
		"agent behind":                     {agent("n", "1.2.0"), []Member{server("a", "1.5.0")}, ""},
		"agent too far behind":             {agent("n", "1.1.0"), []Member{server("a", "1.5.0")}, "agents may be 3 minor versions behind"},
		"agent ahead":                      {agent("n", "1.6.0"), []Member{server("a", "1.6.0"), server("b", "1.5.0")}, "upgrade the servers first"},
		"agents do not mind each other":    {agent("n", "1.2.0"), []Member{agent("m", "1.9.0")}, ""},
		"server behind an agent":           {server("d", "1.5.0"), []Member{server("a", "1.6.0"), agent("n", "1.6.0")}, "agents may not be ahead of a server"},
		"server too far ahead of an agent": {server("d", "1.6.0"), []Member{server("a", "1.5.0"), agent("n", "1.2.0")}, "upgrade that one first"},
		"other major":                      {server("d", "2.0.0"), []Member{server("a", "1.5.0")}, "install skiff 1.5.0 here"},
		"no version":                       {agent("n", "new"), []Member{server("a", "1.5.0")}, "no version"},
		"a server without a version":       {agent("n", "1.5.0"), []Member{server("a", "custom")}, "server a"},
		"unknown":                          {agent("n", "1.5.0"), []Member{server("a", "")}, ""},
	} {
		err := Join(c.m, c.others)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStep(t *testing.T) {
	for name, c := range map[string]struct {
		server   bool
		from, to string
		want     string
	}{
		"next":               {true, "1.5.0", "1.6.2", ""},
		"back":               {true, "1.6.0", "1.5.9", ""},
		"skip":               {true, "1.5.0", "1.7.0", "run 1.6 on every server first"},
		"back by two":        {true, "1.7.0", "1.5.0", "run 1.6 first"},
		"agents may":         {false, "1.5.0", "1.8.0", ""},
		"major":              {false, "1.5.0", "2.0.0", "major"},
		"of development":     {true, "test", "1.5.0", ""},
		"new host, no state": {true, "", "1.5.0", ""},
	} {
		err := Step(c.server, c.from, c.to)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUpgrade(t *testing.T) {
	for name, c := range map[string]struct {
		members []Member
		to      string
		want    []string // parts of the lines
	}{
		"next":              {[]Member{server("a", "1.5.0"), agent("n", "1.3.0")}, "1.6.0", nil},
		"patch":             {[]Member{server("a", "1.5.0"), agent("n", "1.5.0")}, "1.5.1", nil},
		"half done":         {[]Member{server("a", "1.6.0"), server("b", "1.5.0")}, "1.6.0", nil},
		"skip":              {[]Member{server("a", "1.5.0"), server("b", "1.6.0")}, "1.7.0", []string{"server a runs 1.5.0: servers skip no minor version, upgrade all of them to 1.6 first"}},
		"back":              {[]Member{server("a", "1.5.0")}, "1.4.0", []string{"skiff upgrade rollback"}},
		"agent far behind":  {[]Member{server("a", "1.5.0"), agent("n", "1.2.0")}, "1.6.0", []string{"agent n runs 1.2.0"}},
		"agent ahead":       {[]Member{server("a", "1.5.0"), agent("n", "1.7.0")}, "1.6.0", []string{"agent n runs 1.7.0, a newer version"}},
		"servers far apart": {[]Member{server("a", "1.4.0"), server("b", "1.6.0")}, "1.6.0", []string{"skip no minor", "servers run 1.4 to 1.6"}},
		"no version":        {[]Member{server("a", "1.5.0")}, "newest", []string{"no version"}},
		"development":       {[]Member{server("a", "mine")}, "1.5.0", []string{"server a"}},
		"unknown":           {[]Member{server("a", "")}, "1.5.0", nil},
		"major":             {[]Member{server("a", "1.5.0")}, "2.0.0", []string{"major"}},
	} {
		got := Upgrade(c.members, c.to)
		ok := len(got) == len(c.want)
		for i := 0; ok && i < len(got); i++ {
			ok = strings.Contains(got[i], c.want[i])
		}
		if !ok {
			t.Errorf("%s: %q", name, got)
		}
	}
}
