package runtime

import (
	"strings"
	"testing"
)

func TestCheckSeccomp(t *testing.T) {
	for doc, want := range map[string]string{
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`: "",
		`not json`:                              "no valid JSON",
		``:                                      "no valid JSON",
		`{}`:                                    "no defaultAction",
		`{"defaultAction":"SCMP_ACT_NONSENSE"}`: `defaultAction: "SCMP_ACT_NONSENSE" is no action`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"]}]}`:               `syscalls[0].action: "" is no action`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":"chmod","action":"deny"}]}`: "no valid JSON",
	} {
		err := CheckSeccomp([]byte(doc))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", doc, err)
		}
	}
}
