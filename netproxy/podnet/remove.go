package podnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// removeGroup marks links that are about to be removed together ("skif").
const removeGroup = 0x736b6966

// removal is links that are removed by one request. The kernel waits for a
// grace period per request, some 20 ms, and lets nobody change links
// meanwhile; so the pods that end at the same time share one.
type removal struct {
	links []string
	done  chan struct{}
	err   error
}

// removeLink removes a link; a missing one is no error. While one removal is
// under way, all others gather for the next.
func (n *Network) removeLink(name string) error {
	n.removeMu.Lock()
	r := n.nextRemoval
	if r == nil {
		r = &removal{done: make(chan struct{})}
		n.nextRemoval = r
	}
	r.links = append(r.links, name)
	first := len(r.links) == 1
	n.removeMu.Unlock()
	if !first {
		<-r.done
		return r.err
	}
	n.removing.Lock()
	defer n.removing.Unlock()
	n.removeMu.Lock()
	n.nextRemoval = nil // who comes now is in the next one
	n.removeMu.Unlock()
	r.err = n.removeLinks(r.links)
	close(r.done)
	return r.err
}

func (n *Network) removeLinks(names []string) error {
	var found []netlink.Link
	for _, name := range names {
		l, err := n.host.LinkByName(name)
		if isNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
		found = append(found, l)
	}
	switch len(found) {
	case 0:
		return nil
	case 1:
		if err := n.host.LinkDel(found[0]); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove link %s: %w", found[0].Attrs().Name, err)
		}
		return nil
	}
	for _, l := range found {
		if err := n.host.LinkSetGroup(l, removeGroup); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove link %s: %w", l.Attrs().Name, err)
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(removeGroup)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %d links: %w", len(found), err)
	}
	return nil
}
