// Package static runs the pods that a folder of manifests asks for (static
// pods), and shows them in the API as mirror pods.
//
// A Folder reads the manifests, one Pod in each, whenever they change. A
// manifest that cannot be read, is being written, or is not valid changes
// nothing: what it said when it was last good goes on. Only removing or
// changing the file ends its pod. A pod's name is the manifest's and the
// node's, its UID a hash of what the manifest says and of the node's name, so a
// manifest with other contents is another pod.
//
// What the node knows of each such pod is a file below Config.Records: the pods
// start before any server answers, and keep their counters over restarts.
//
// Mirrors keeps one object in the API for each pod: made when it is missing,
// deleted with the pod, given its status. The API has no say in these pods.
//
// Limits: static pods may not refer to other objects of the API, as upstream's
// may not. Sub-folders are not looked into.
package static
