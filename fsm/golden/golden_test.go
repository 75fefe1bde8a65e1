package golden

import "testing"

func TestReleased(t *testing.T) {
	t.Parallel()
	for changelog, want := range map[string]bool{
		"# Changelog\n\n## Unreleased\n\n- 0.1.0 comes\n": false,
		"## Unreleased\n## 0.1.0\n":                       true,
		"## [0.1.0] - 2027-01-01\n":                       true,
		"## v0.1.0 (January)\n":                           true,
		"## 0.1.01\n":                                     false,
		"## 0.1\n":                                        false,
		"text ## 0.1.0\n":                                 false,
	} {
		if got := released(changelog, "0.1.0"); got != want {
			t.Errorf("%q: %v", changelog, got)
		}
	}
}
