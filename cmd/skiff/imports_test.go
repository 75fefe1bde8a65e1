package main

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/skiff-sh/skiff/"

// importRules say which way imports run. A package whose path starts with
// from must not depend on one that starts with to.
var importRules = []struct{ from, to, reason string }{
	{"fsm", "cluster", "the state machine is replayed without a server"},
	{"fsm", "node", "the state machine is replayed without a server"},
	{"fsm", "netproxy", "the state machine is replayed without a server"},
	{"fsm", "backup", "backup reads what fsm writes, not the other way round"},
	{"backup", "cluster", "a snapshot is restored where no server runs"},
	{"backup", "node", "a snapshot is restored where no server runs"},
	{"backup", "netproxy", "a snapshot is restored where no server runs"},
	{"node", "cluster", "a node may run another version than its servers: it talks to the API"},
	{"node", "fsm", "a node may run another version than its servers: it talks to the API"},
	{"node", "backup", "a node holds no cluster state"},
	{"node", "netproxy", "the agent takes the network through an interface"},
	{"netproxy", "cluster", "a node may run another version than its servers: it talks to the API"},
	{"netproxy", "fsm", "a node may run another version than its servers: it talks to the API"},
	{"netproxy", "backup", "the proxy holds no cluster state"},
	{"cluster", "node", "servers reach nodes by their API only"},
	{"cluster", "netproxy", "servers reach nodes by their API only"},
	{"cluster/controller", "cluster/scheduler", "controllers meet in the API, not in Go"},
	{"cluster/scheduler", "cluster/controller", "controllers meet in the API, not in Go"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		pkg, ours := strings.CutPrefix(words[0], module)
		if !ours {
			continue
		}
		seen++
		for _, dep := range words[1:] {
			if strings.HasPrefix(dep, "k8s.io/kubernetes/") {
				t.Errorf("%s depends on %s: skiff uses the published libraries only", pkg, dep)
			}
			d, ours := strings.CutPrefix(dep, module)
			if !ours {
				continue
			}
			for _, r := range importRules {
				if under(pkg, r.from) && under(d, r.to) && !(under(pkg, r.to)) {
					t.Errorf("%s depends on %s: %s", pkg, d, r.reason)
				}
			}
		}
	}
	if seen < 10 {
		t.Fatalf("go list named %d packages of ours", seen)
	}
}

func under(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }
