"""A mechanism driver for Neutron's ML2 without a data plane: whatever port is asked for is bound and active at once."""

from neutron_lib import constants
from neutron_lib.api.definitions import portbindings
from neutron_lib.plugins.ml2 import api

DETAILS = {
    portbindings.CAP_PORT_FILTER: True,
    portbindings.OVS_HYBRID_PLUG: False,
    portbindings.VIF_DETAILS_CONNECTIVITY: portbindings.CONNECTIVITY_L2,
}


class NoDataPlane(api.MechanismDriver):
    """Knows no agents, so every host reaches every segment."""

    def initialize(self):
        pass

    @property
    def connectivity(self):
        return portbindings.CONNECTIVITY_L2

    def bind_port(self, context):
        if context.segments_to_bind:
            segment = context.segments_to_bind[0][api.ID]
            context.set_binding(segment, portbindings.VIF_TYPE_OVS, DETAILS, status=constants.PORT_STATUS_ACTIVE)

    def check_segment_for_agent(self, segment, agent):
        return True

    def filter_hosts_with_segment_access(self, context, segments, candidate_hosts, agent_getter):
        return set(candidate_hosts)
