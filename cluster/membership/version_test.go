package membership

import (
	"strings"
	"testing"
)

func TestVersionWarnings(t *testing.T) {
	m := func(name, version string, maxLevel int) MemberStatus {
		return MemberStatus{Name: name, Version: version, MaxLevel: maxLevel, State: Alive}
	}
	dead := m("d", "1.3.0", 1)
	dead.State = Dead
	for name, c := range map[string]struct {
		st   Status
		want string
	}{
		"one version":           {Status{FeatureLevel: 1, Members: []MemberStatus{m("a", "1.4.0", 1), m("b", "1.4.0", 0), dead}}, ""},
		"two versions":          {Status{FeatureLevel: 1, Members: []MemberStatus{m("a", "1.5.0", 2), m("b", "1.4.0", 1), m("c", "1.4.0", 1)}}, "1.4.0 (b, c), 1.5.0 (a)"},
		"could be finalized":    {Status{FeatureLevel: 1, Members: []MemberStatus{m("a", "1.5.0", 3), m("b", "1.5.0", 2)}}, "the programs of all members know 2: skiff upgrade finalize"},
		"going on":              {Status{FeatureLevel: 1, Upgrade: "to 1.5.0", Members: []MemberStatus{m("a", "1.5.0", 2)}}, ""},
		"is finalized":          {Status{FeatureLevel: 2, Members: []MemberStatus{m("a", "1.5.0", 2)}}, ""},
		"nobody says a version": {Status{FeatureLevel: 1, Members: []MemberStatus{m("a", "", 0)}}, ""},
	} {
		got := strings.Join(versionWarnings(&c.st), "\n")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
