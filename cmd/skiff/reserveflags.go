package main

import (
	"strings"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node"
)

// reserveFlags keep a part of the machine back from pods. They have kubelet's names.
func reserveFlags() []cli.Flag {
	return []cli.Flag{
		listFlag("kube-reserved", "RESOURCE=QUANTITY of cpu, memory, ephemeral-storage or pid that is kept back from pods for skiff"),
		listFlag("system-reserved", "RESOURCE=QUANTITY of cpu, memory, ephemeral-storage or pid that is kept back from pods for the rest of the system"),
	}
}

// parseReserved adds up what both flags say.
func parseReserved(c *cli.Context) (corev1.ResourceList, error) {
	out := corev1.ResourceList{}
	for _, flag := range reserveFlags() {
		name := flag.Names()[0]
		seen := map[corev1.ResourceName]bool{}
		for _, s := range c.StringSlice(name) {
			key, value, _ := strings.Cut(s, "=")
			res := corev1.ResourceName(strings.TrimSpace(key))
			switch res {
			case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, node.ResourcePID:
			default:
				return nil, usagef("--%s %q: want cpu, memory, ephemeral-storage or pid, = and a quantity", name, s)
			}
			if seen[res] {
				return nil, usagef("--%s: %s is there twice", name, res)
			}
			seen[res] = true
			q, err := resource.ParseQuantity(strings.TrimSpace(value))
			if err != nil || q.Sign() < 0 {
				return nil, usagef("--%s %q: want a quantity such as 100m or 1Gi after the =", name, s)
			}
			sum := out[res]
			sum.Add(q)
			out[res] = sum
		}
	}
	return out, nil
}
