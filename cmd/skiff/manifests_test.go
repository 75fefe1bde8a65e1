package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/skiff-sh/skiff/node/static"
)

func TestStaticPodFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, c := range []struct{ args, path, periods, want string }{
		{"", "/etc/skiff/manifests", "[{0 20s} {2000000000 10s}]", ""},
		{"--static-pod-path=", "", "[{0 20s} {2000000000 10s}]", ""},
		{"--static-pod-path " + dir, dir, "[{0 20s} {2000000000 10s}]", ""},
		{"--static-pod-path " + dir + "/later", dir + "/later", "[{0 20s} {2000000000 10s}]", ""},
		{"--static-pod-path " + file, "", "", "--static-pod-path " + file + " is no folder"},
		{"--static-pod-path " + file + "/x", "", "", "--static-pod-path"},
		{"--shutdown-grace-period 0", "/etc/skiff/manifests", "[]", ""},
		{"--shutdown-grace-period 5s", "/etc/skiff/manifests", "[{0 0s} {2000000000 5s}]", ""},
		{"--shutdown-grace-period 5s --shutdown-grace-period-critical-pods 6s", "", "", "--shutdown-grace-period, --shutdown-grace-period-critical-pods: 6s for critical pods are more"},
		{"--shutdown-grace-period -5s", "", "", "no negative times"},
		{"--shutdown-grace-period-by-pod-priority 0=5s,10=6s", "/etc/skiff/manifests", "[{0 5s} {10 6s}]", ""},
		{"--shutdown-grace-period-by-pod-priority 0:5s", "", "", `--shutdown-grace-period-by-pod-priority "0:5s": want PRIORITY=TIME`},
		{"--shutdown-grace-period-by-pod-priority 0=5s --shutdown-grace-period 5s", "", "", "give one of the two"},
	} {
		var o hostOptions
		app := &cli.App{Flags: append(shutdownFlags(), manifestFlag()), ExitErrHandler: func(*cli.Context, error) {}, Action: func(c *cli.Context) (err error) {
			if o.logger, err = newLogger(os.Stderr, "text", 0); err != nil {
				return err
			}
			if o.shutdown, err = parseShutdown(c); err != nil {
				return err
			}
			return o.parseManifests(c)
		}}
		err := app.Run(append([]string{"skiff"}, strings.Fields(c.args)...))
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", c.args, err, c.want)
			}
			continue
		}
		if err != nil || o.manifests != c.path || fmt.Sprint(o.shutdown) != c.periods {
			t.Errorf("%s: %v, %q, %v", c.args, err, o.manifests, o.shutdown)
		}
	}
}

func TestStaticPodsAreCheckedAsByTheAPI(t *testing.T) {
	for text, want := range map[string]string{
		"{containers: [{name: c, image: a}]}": "",
		"{containers: [{name: c}]}":           "spec.containers[0].image: Required value",
		"{}":                                  "spec.containers: Required value",
		"{containers: [{name: C, image: a, volumeMounts: [{name: v, mountPath: /a}]}]}":                                             `[spec.containers[0].name: Invalid value: "C"`,
		"{containers: [{name: c, image: a}], hostNetwork: true, restartPolicy: Sometimes}":                                          "spec.restartPolicy: Unsupported value",
		"{containers: [{name: c, image: a, resources: {limits: {cpu: 1}}}], volumes: [{name: v, hostPath: {path: /, type: Ship}}]}": "spec.volumes[0].hostPath.type: Unsupported value",
	} {
		p, err := static.Parse([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: "+text+"\n"), "n1", preparePod)
		switch {
		case want == "" && (err != nil || p.Spec.RestartPolicy != "Always" || p.Spec.Containers[0].ImagePullPolicy == ""):
			t.Errorf("%s: %v, %+v", text, err, p)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := static.Parse([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: A_b, labels: {a b: c}}\nspec: {containers: [{name: c, image: a}]}\n"), "n1", preparePod); err == nil ||
		!strings.Contains(err.Error(), "metadata.name") || !strings.Contains(err.Error(), "metadata.labels") {
		t.Errorf("%v", err)
	}
}
