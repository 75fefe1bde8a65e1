package core

//lint:file-ignore SA1019 Endpoints are deprecated, and still served

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// repack writes subsets in one canonical form: every port and address once,
// ports with the same addresses together, all of it sorted. An address that is
// listed as ready and as not ready for the same port counts as not ready.
func repack(subsets []corev1.EndpointSubset) []corev1.EndpointSubset {
	type state struct {
		address  corev1.EndpointAddress
		notReady bool
	}
	ports := map[string]corev1.EndpointPort{}
	addresses := map[string]map[string]state{} // port -> address
	for _, s := range subsets {
		of := s.Ports
		if len(of) == 0 {
			of = []corev1.EndpointPort{{Port: -1}} // addresses without ports stay together
		}
		for _, p := range of {
			key := fmt.Sprintf("%s/%s/%d/%s", p.Name, p.Protocol, p.Port, ptr.Deref(p.AppProtocol, "\x00"))
			ports[key] = p
			if addresses[key] == nil {
				addresses[key] = map[string]state{}
			}
			put := func(a corev1.EndpointAddress, notReady bool) {
				id := addressKey(&a)
				addresses[key][id] = state{a, notReady || addresses[key][id].notReady}
			}
			for _, a := range s.Addresses {
				put(a, false)
			}
			for _, a := range s.NotReadyAddresses {
				put(a, true)
			}
		}
	}
	groups := map[string]*corev1.EndpointSubset{} // by set of addresses
	for _, key := range slices.Sorted(maps.Keys(ports)) {
		ids := slices.Sorted(maps.Keys(addresses[key]))
		var set strings.Builder
		var fresh corev1.EndpointSubset
		for _, id := range ids {
			a := addresses[key][id]
			fmt.Fprintf(&set, "%s %t\n", id, a.notReady)
			if a.notReady {
				fresh.NotReadyAddresses = append(fresh.NotReadyAddresses, a.address)
			} else {
				fresh.Addresses = append(fresh.Addresses, a.address)
			}
		}
		if ports[key].Port < 0 {
			groups["\x00"+set.String()] = &fresh
			continue
		}
		g := groups[set.String()]
		if g == nil {
			g = &fresh
			groups[set.String()] = g
		}
		g.Ports = append(g.Ports, ports[key])
	}
	var out []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		g := groups[key]
		slices.SortFunc(g.Ports, func(a, b corev1.EndpointPort) int {
			return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
		})
		out = append(out, *g)
	}
	return out
}

func addressKey(a *corev1.EndpointAddress) string {
	uid := ""
	if a.TargetRef != nil {
		uid = string(a.TargetRef.UID)
	}
	return fmt.Sprintf("%s %s %s %s", a.IP, a.Hostname, ptr.Deref(a.NodeName, ""), uid)
}
